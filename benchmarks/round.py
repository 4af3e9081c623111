"""One round from served decisions to a better policy, by the real commands: serve, retrain, canary, promote, roll back.

    python benchmarks/round.py [--num-sessions 2000] [--out runs/round]

A server on uvicorn follows a registry and explores; its providers replay recorded outcomes, and each answer's recorded
quality comes back as feedback. First a policy is retrained from the decision log, passes the gate, is tried on a share
of the sessions and promoted. Then a policy that learned from shuffled qualities is refused by the gate; forced through,
its trial ends it.
"""

import asyncio
import contextlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
import yaml
from _processes import machine
from _servers import UvicornReplicas

from seqroute_ray import cli
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.registry import Registry
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.quickstart import _free_port as free_port
from seqroute_ray.ray_session import ray_session
from seqroute_ray.serving.replay_upstream import running_replay_upstream

TEMPLATES: tuple[str, ...] = (
    "{name} has {a} {things} and buys {b} more every day for {c} days. How many {things} does {name} have then?",
    "{name} sells {things} at {a} dollars each and paid {b} dollars for {c} of them. What is the profit in dollars?",
    "What is the remainder of {a}^{b} divided by {c}?",
    "Find the sum of all real roots of x^3 - {a}x^2 + {b}x - {c}.",
    "What does this return: sorted([x * {a} for x in range({b}) if x % {c}])?",
    "What is the output of '{things}'[{c}:].replace('{name}', '{a}').upper()?",
)
NAMES, THINGS = ("Ada", "Ben", "Chloe", "Dan", "Eve", "Finn"), ("apples", "books", "coins", "maps", "pens", "tiles")


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: Path = Path("runs/round")  # made anew
    num_sessions: int = 2000  # served before the first retraining; half as many before each later look
    num_base_sessions: int = 1000  # recorded ones that the first policy learns from
    max_turns: int = 2  # of a session, at most half as many fewer
    num_steps: int = 1000  # gradient steps of each training
    budget: float = 0.4  # of each session, as a multiple of the reference cost
    epsilon: float = 0.5  # of the server
    share: float = 0.2  # of the canary
    test_share: float = 0.4  # of the served sessions
    max_quality_loss: float = 0.08  # of gate and canary
    max_rate_rise: float = 0.1  # bankruptcies in the gate, errors in the canary
    max_cost_rise: float = 3.0  # of gate and canary, as a share
    min_sessions: int = 100  # of gate and canary
    min_ess: float = 50.0
    num_clients: int = 8
    max_looks: int = 4  # at a canary, with more sessions before each
    seed: int = 0

    @property
    def min_turns(self) -> int:
        return -(-self.max_turns // 2)


@dataclass
class Scene:
    """The folder, the server and the traffic of one run."""

    settings: Settings
    upstream_url: str = ""
    base_url: str = ""
    num_served: int = 0
    story: list[dict[str, Any]] = field(default_factory=list)  # what happened, in order

    @property
    def registry(self) -> Path:
        return self.settings.out / "registry"

    @property
    def ledger(self) -> Path:
        return self.settings.out / "ledger.sqlite"

    def command(self, *words: object) -> tuple[int, dict[str, Any]]:
        """A seqroute command, as typed; its exit code and result, or its error."""
        out, err = io.StringIO(), io.StringIO()
        arguments = [str(word) for word in words]

        def parsed() -> dict[str, Any]:
            result: dict[str, Any] = tyro.extras.subcommand_cli_from_dict(cli.COMMANDS, args=arguments)
            return result

        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(parsed)
        if code:
            return code, {"error": err.getvalue().strip().splitlines()[-1]}
        return code, json.loads(out.getvalue().splitlines()[-1])

    def must(self, *words: object) -> dict[str, Any]:
        code, result = self.command(*words)
        if code:
            raise RuntimeError(f"seqroute {' '.join(map(str, words))}: {result['error']}")
        return result

    def policy_from(self, logs: Path, name: str) -> Path:
        """Train a policy from logs, by the commands."""
        folder, steps = self.settings.out / name, self.settings.num_steps
        sessions, dataset, policy = folder / "sessions.parquet", folder / "dataset", folder / "policy"
        self.must("import", "--logs", logs, "--out", sessions, "--runner", "local")
        self.must("relabel", "--sessions", sessions, "--out", dataset, "--runner", "local")
        self.must("train", "--dataset", dataset, "--out", policy, *steps_flags(steps))
        return policy

    def retrain(self, *more: object) -> tuple[int, dict[str, Any]]:
        settings, begun_s = self.settings, time.monotonic()
        flags = {
            "--registry": self.registry,
            "--out": settings.out / "retraining",
            "--ledger": self.ledger,
            "--base": settings.out / "first" / "sessions.parquet",
            "--runner": "local",
            "--test-share": settings.test_share,
            "--gate.budgets": settings.budget,
            "--gate.max-quality-loss": settings.max_quality_loss,
            "--gate.max-cost-rise": settings.max_cost_rise,
            "--gate.max-bankruptcy-rise": settings.max_rate_rise,
            "--gate.min-sessions": settings.min_sessions,
            "--gate.min-ess": settings.min_ess,
            "--canary.share": settings.share,
            "--canary.min-sessions": settings.min_sessions,
            "--canary.max-quality-loss": settings.max_quality_loss,
            "--canary.max-cost-rise": settings.max_cost_rise,
            "--canary.max-error-rise": settings.max_rate_rise,
        }
        words = [word for pair in flags.items() for word in pair]
        code, result = self.command("retrain", *words, *steps_flags(settings.num_steps), *more)
        self.tell(
            "retrain", code=code, wall_s=round(time.monotonic() - begun_s, 1), flags=list(map(str, more)), **result
        )
        return code, result

    def serve(self, num_sessions: int) -> None:
        begun_s = time.monotonic()
        traffic = Traffic(self.base_url, self.settings, self.num_served, num_sessions, self.budget_usd())
        asyncio.run(traffic.run())
        self.num_served += num_sessions
        self.tell(
            "serve",
            sessions=num_sessions,
            turns=traffic.num_turns,
            refused=traffic.num_refused,
            failed=traffic.num_failed,
            mean_quality=round(float(np.mean(traffic.scores)), 4),
            wall_s=round(time.monotonic() - begun_s, 1),
        )

    def budget_usd(self) -> float:
        registry = Registry(self.registry)
        reference_usd = registry.load(registry.pointers().current).layout.reference_cost_usd
        return self.settings.budget * reference_usd

    def tell(self, what: str, **figures: Any) -> None:
        self.story.append({"what": what, **figures})
        print(json.dumps(self.story[-1], default=str), file=sys.stderr)

    def server_config(self, policy: Path) -> Path:
        prices = ("usd_per_m_input", "usd_per_m_output")
        models = PolicyArtefact.load(policy).catalog.models
        fields = {
            "policy": {"registry": str(self.registry), "follow_every_s": 0.2, "epsilon": self.settings.epsilon},
            "ledger": str(self.ledger),
            "upstreams": [
                {"model": model.name, "base_url": self.upstream_url, **{name: getattr(model, name) for name in prices}}
                for model in models
            ],
        }
        path = self.settings.out / "serving.yaml"
        path.write_text(yaml.safe_dump(fields))
        return path


def steps_flags(num_steps: int) -> list[object]:
    return ["--cql.num-steps", num_steps, "--cql.batch-size", 256]


class Traffic:
    """Clients that ask some questions a session, and give each answer its recorded quality."""

    def __init__(self, base_url: str, settings: Settings, first: int, num_sessions: int, budget_usd: float) -> None:
        self._base_url, self._settings, self._budget_usd = base_url, settings, budget_usd
        self._waiting = list(range(first, first + num_sessions))
        self._outcomes = load_outcomes()
        self._question = {name: row for row, name in enumerate(self._outcomes.query_id.tolist())}
        self.num_turns, self.num_refused, self.num_failed, self.scores = 0, 0, 0, list[float]()

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http:
            await asyncio.gather(*(self._client(http) for _ in range(self._settings.num_clients)))

    async def _client(self, http: aiohttp.ClientSession) -> None:
        while self._waiting:
            number = self._waiting.pop()
            rng = np.random.default_rng([self._settings.seed, number])
            for _ in range(int(rng.integers(-(-self._settings.max_turns // 2), self._settings.max_turns + 1))):
                try:
                    if not await self._turn(http, f"round-{number}", question(rng)):
                        break
                except (aiohttp.ClientError, TimeoutError) as error:  # a machine that is too busy
                    print(f"round-{number}: {error!r}", file=sys.stderr)
                    self.num_failed += 1
                    break

    async def _turn(self, http: aiohttp.ClientSession, session: str, text: str) -> bool:
        headers = {"x-session-id": session, "x-session-budget-usd": f"{self._budget_usd:.9f}"}
        body = {"messages": [{"role": "user", "content": text}]}
        async with http.post(f"{self._base_url}/v1/chat/completions", json=body, headers=headers) as response:
            answer = await response.json()
        if response.status != 200:
            self.num_refused += 1
            return False
        self.num_turns += 1
        score = self._recorded(answer)
        self.scores.append(score)
        feedback = {"decision_id": response.headers["x-seqroute-decision"], "score": score, "judge": "recorded"}
        async with http.post(f"{self._base_url}/v1/feedback", json=feedback) as response:
            response.raise_for_status()
        return True

    def _recorded(self, answer: dict[str, Any]) -> float:
        """The quality of the recorded answer that the stand-in names; cut answers count 0."""
        choice = answer["choices"][0]
        name = choice["message"]["content"].split("recorded question ")[1].split(";")[0]
        action = self._outcomes.catalog.action(answer["seqroute"]["decision"]["model"])
        whole = choice["finish_reason"] != "length"
        return float(self._outcomes.quality[self._question[name], action]) if whole else 0.0


def question(rng: np.random.Generator) -> str:
    a, b, c = rng.integers(2, 100, size=3).tolist()
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    return template.format(name=rng.choice(NAMES), things=rng.choice(THINGS), a=a, b=b, c=c)


def shuffled(logs: Path, out: Path, seed: int) -> Path:
    """The logs with the qualities dealt out anew: what was right tells nothing of what is."""
    table = pq.read_table(logs)
    order = np.random.default_rng(seed).permutation(table.num_rows)
    at = table.schema.get_field_index("quality")
    pq.write_table(table.set_column(at, "quality", pa.chunked_array(table["quality"].take(pa.array(order)))), out)
    return out


def play(scene: Scene, started: Callable[[Path], str]) -> None:
    """The whole round. started: starts a server by its settings file; returns its address."""
    settings = scene.settings
    logs = settings.out / "logs.parquet"
    lengths = ("--min-turns", settings.min_turns, "--max-turns", settings.max_turns)
    scene.must("sample", "--num-sessions", settings.num_base_sessions, "--out", logs, *lengths)
    first = scene.policy_from(logs, "first")
    scene.must("registry", "add", "--registry", scene.registry, "--policy", first, "--promote")
    scene.base_url = started(scene.server_config(first))
    scene.serve(settings.num_sessions)
    if scene.retrain()[0]:
        return
    if watch_to_the_end(scene) != "promoted":
        return
    bad = scene.policy_from(shuffled(logs, settings.out / "shuffled.parquet", settings.seed), "bad")
    code, _ = scene.retrain("--candidate", bad)
    if code != 1:
        return
    if scene.retrain("--candidate", bad, "--force")[0] == 0:
        watch_to_the_end(scene, "--candidate", bad, "--force")


def watch_to_the_end(scene: Scene, *flags: object) -> str:
    """More sessions and another look, until the canary is decided; its outcome."""
    outcome = ""
    for _ in range(scene.settings.max_looks):
        scene.serve(scene.settings.num_sessions // 2)
        outcome = scene.retrain(*flags)[1].get("outcome", "failed")
        if outcome != "on trial":
            break
    return outcome


def main(settings: Settings) -> None:
    shutil.rmtree(settings.out, ignore_errors=True)
    settings.out.mkdir(parents=True)
    begun_s = time.monotonic()
    with running_replay_upstream() as upstream_url, contextlib.ExitStack() as stack:
        scene = Scene(settings, upstream_url)

        def started(config: Path) -> str:
            server = UvicornReplicas(config, [free_port()])
            stack.callback(server.stop)
            server.start()
            return server.base_urls[0]

        with ray_session():
            play(scene, started)
    result = {"machine": machine(), "seed": settings.seed, "wall_s": round(time.monotonic() - begun_s, 1)}
    print(json.dumps({**result, "story": scene.story}, default=str))


if __name__ == "__main__":
    main(tyro.cli(Settings))
