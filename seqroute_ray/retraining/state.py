"""What a retraining remembers between invocations: one JSON file, replaced as a whole after each step."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.storage import Folder

STATE, LOCK = "state.json", "retrain.lock"
Step = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One way from logs to a decision."""

    number: int
    key: str  # RetrainConfig.key
    since: int  # watermark of the ledger where its data begin
    sessions: str  # session file of all rounds before; "" for none
    steps: dict[str, Step] = field(default_factory=dict)  # results of those that are done, by name
    outcome: str = ""  # promoted, rolled_back, refused; empty while it goes on

    def with_step(self, name: str, result: Mapping[str, Any]) -> "Round":
        return replace(self, steps={**self.steps, name: dict(result)})


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Of one `out` folder."""

    rounds: tuple[Round, ...] = ()

    @property
    def last(self) -> Round | None:
        return self.rounds[-1] if self.rounds else None

    def with_last(self, last: Round) -> "State":
        """Replaces the last round, or adds the next one."""
        return replace(self, rounds=(*(each for each in self.rounds if each.number != last.number), last))

    def save(self, out: Path) -> None:
        Folder.at(out).write(STATE, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, out: Path) -> "State":
        """An empty one where there is none yet. Raises DataError."""
        folder = Folder.at(out)
        if not folder.exists(STATE):
            return cls()
        try:
            return cls(rounds=tuple(Round(**each) for each in json.loads(folder.read(STATE))["rounds"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{out}/{STATE}: is damaged ({error!r}); restore it, or name another out") from error
