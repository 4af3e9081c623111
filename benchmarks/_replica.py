"""One replica as a process of its own, on uvicorn: `python benchmarks/_replica.py --config C.yaml --port 8001`."""

from dataclasses import dataclass
from pathlib import Path

import tyro
import uvicorn

from seqroute_ray.serving.api import make_api
from seqroute_ray.serving.config import load_config
from seqroute_ray.serving.ledgers import factory


@dataclass(frozen=True, kw_only=True)
class Settings:
    config: Path  # ServingConfig YAML
    port: int
    check_then_add: bool = False  # with the broken ledger


def main(settings: Settings) -> None:
    if settings.check_then_add:
        from _broken_ledger import CheckThenAddLedger

        vars(factory)["SqliteLedger"] = CheckThenAddLedger
    uvicorn.run(make_api(load_config(settings.config)), host="127.0.0.1", port=settings.port, log_level="error")


if __name__ == "__main__":
    main(tyro.cli(Settings))
