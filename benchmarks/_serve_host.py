"""Ray and Serve with the application, as a process of its own; ends when its standard input does.

    python benchmarks/_serve_host.py --config serving.yaml --port 8000 --options '{"num_replicas": 2}'

Prints a JSON line when all replicas run, then one whenever the numbers of replicas by state change.
"""

import json
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from seqroute_ray.ray_session import ray_session

POLL_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Settings:
    config: Path  # ServingConfig YAML
    port: int
    options: str = "{}"  # JSON: of the deployment, over the application's


def main(settings: Settings) -> None:
    with ray_session():
        from ray import serve

        from seqroute_ray.serving.app import ServeArgs, build_app

        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": settings.port})
        application = build_app(ServeArgs(config=str(settings.config)))
        application._bound_deployment = application._bound_deployment.options(**json.loads(settings.options))
        serve.run(application, name="seqroute", route_prefix="/")
        print(json.dumps({"ready": True}), flush=True)
        threading.Thread(target=watch, daemon=True).start()
        sys.stdin.read()


def watch() -> None:
    from ray import serve

    before: dict[str, int] = {}
    while True:
        try:
            deployments = serve.status().applications["seqroute"].deployments
            now = {str(state): num for each in deployments.values() for state, num in each.replica_states.items()}
        except Exception as error:  # the controller may be dead for a while
            now = {type(error).__name__: 1}
        if now != before:
            print(json.dumps({"replicas": now}), flush=True)
        before = now
        time.sleep(POLL_S)


if __name__ == "__main__":
    main(tyro.cli(Settings))
