"""Makes the logs of docs/guide.md: what a tutoring app's gateway wrote, and a set that every model answered.

python examples/own_logs/make_logs.py

Prompts are our own wording. What a model made of one (tokens, right or wrong) is what was recorded for a bundled
question much like it: one of the nearest 20 of the same part. No outcome is invented, and no answer is logged.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.embedding import load_embedder
from seqroute_ray.data.bundled import EMBEDDER, load_outcomes
from seqroute_ray.data.catalogs import load_catalog

FOLDER = Path(__file__).parent
LOGGED_SHARE = (0.3, 0.3, 0.4)  # of the models, in the catalog's order: the app chose by a rule that nobody wrote down
JUDGED_SHARE = 0.9  # of the calls
NUM_LIKE = 20  # recorded questions that stand for a prompt
BEGIN = datetime(2026, 9, 1, 8, tzinfo=UTC)
OUTSIDER = "gpt-4-turbo-2024-04-09"  # somebody tried it once: it is not in the catalog

KINDS = (
    (
        "A baker sells {a} rolls in the morning and half as many in the afternoon. How many does she sell in a day?",
        "Tom has {b} boxes with {c} pencils each and gives away {b} of them. How many pencils are left?",
        "A ticket costs ${c} for children and twice as much for adults. What do {b} children and 2 adults pay?",
        "Lena reads {b} pages a day from Monday to Friday and {a} at the weekend. How many pages are that in 3 weeks?",
        "A tank holds {a} litres. {c} % of them leak out, then {b} litres are poured in. How much is in it now?",
    ),
    (
        "What does f([{b}, {c}, {a}]) return?\ndef f(x):\n    x.sort()\n    return x[::-1] + [len(x)]",
        "What does f('{w}', {b}) return?\ndef f(s, n):\n    return ''.join(c.upper() for c in s if ord(c) % n)",
        "What does f({{'{w}': {a}}}) return?\ndef f(d):\n    d['sum'] = sum(d.values())\n    return list(d.items())",
        "What does f('{w} {w}') return?\ndef f(s):\n    words = s.split()\n"
        "    return [w.replace('a', '{b}') for w in words]",
    ),
    (
        "Find the number of ordered pairs (a, b) of positive integers with a + b = {a}{c} and no digit zero in a or b.",
        "Let z be a complex number with |z| = {b}. Find the greatest possible value of |z^3 - {c}z + 2|.",
        "In triangle ABC, AB = {a}, BC = {c} and the angle at B is 60 degrees. Find the length of the angle bisector.",
        "Find the remainder when {b}^{a} + {c} is divided by 1000.",
    ),
)
WORDS = ("banana", "router", "ledger", "session", "window", "garden", "marble", "lantern")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsConfig:
    """The files of docs/guide.md. Each field is a flag."""

    out: Path = FOLDER  # folder of calls.jsonl, judgements.jsonl and evaluation.csv
    num_sessions: int = 200  # of the app's log, 3 to 5 turns each
    num_evaluated: int = 40  # sessions of each of the parts tune and test, every model asked
    seed: int = 0


@dataclass(frozen=True)
class Turn:
    """A prompt, and the recorded question that stands for it."""

    session: int
    turn: int
    text: str
    question: int  # row of the bundled outcomes


def main(config: LogsConfig) -> None:
    rng, catalog = np.random.default_rng(config.seed), load_catalog(FOLDER / "catalog.yaml")
    turns = sessions(config.num_sessions, "fit", rng)
    calls, judgements = zip(*logged(turns, catalog, rng), strict=True)
    _write_lines(config.out / "calls.jsonl", [line for lines in calls for line in lines])
    _write_lines(config.out / "judgements.jsonl", [line for line in judgements if line])
    evaluated = [(part, turn) for part in ("tune", "test") for turn in sessions(config.num_evaluated, part, rng)]
    with (config.out / "evaluation.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(matrix(evaluated, catalog))


def sessions(num_sessions: int, part: str, rng: np.random.Generator) -> list[Turn]:
    """Half of the sessions stay on one kind of task, the others mix."""
    turns = []
    for session in range(num_sessions):
        kind, stays = rng.integers(len(KINDS)), rng.random() < 0.5
        for turn in range(int(rng.integers(3, 6))):
            text = prompt(int(kind if stays else rng.integers(len(KINDS))), rng)
            turns.append((session, turn, text))
    questions = like([text for _, _, text in turns], part, rng)
    return [Turn(*turn, question) for turn, question in zip(turns, questions, strict=True)]


def prompt(kind: int, rng: np.random.Generator) -> str:
    templates = KINDS[kind]
    a, b, c = (int(rng.integers(low, high)) for low, high in ((10, 99), (2, 9), (3, 30)))
    return templates[rng.integers(len(templates))].format(a=2 * a, b=b, c=c, w=WORDS[rng.integers(len(WORDS))])


def like(texts: list[str], part: str, rng: np.random.Generator) -> list[int]:
    """A recorded question of the part for each text: one of those nearest to it.

    In float64, and text by text: in float32 the order of near ones would depend on the processor.
    """
    outcomes, embedder = load_outcomes(), load_embedder(EMBEDDER)
    rows = np.flatnonzero(outcomes.part == part)
    questions = outcomes.embedding[rows].astype(np.float64)
    questions /= np.linalg.norm(questions, axis=1, keepdims=True)
    near = np.concatenate([embedder.embed([text]) for text in texts]).astype(np.float64) @ questions.T
    nearest = np.argsort(-near, axis=1, kind="stable")[:, :NUM_LIKE]
    return [int(rows[candidates[rng.integers(NUM_LIKE)]]) for candidates in nearest]


def logged(
    turns: list[Turn], catalog: Catalog, rng: np.random.Generator
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any] | None]]:
    """The lines of each turn's calls, the last one with the answer, and its judgement where there is one."""
    outcomes = load_outcomes().select(catalog.names)
    for number, turn in enumerate(turns):
        action = int(rng.choice(len(catalog), p=LOGGED_SHARE))
        model = catalog.models[action]
        head = {"session_id": f"tutor-{turn.session:04d}", "timestamp": _time(turn), "id": f"call-{number:05d}"}
        request = {"model": "auto", "messages": [{"role": "user", "content": turn.text}], "max_tokens": 4096}
        answer = {
            "id": f"chatcmpl-{number:05d}",
            "model": OUTSIDER if number == len(turns) // 2 else model.aliases[0] if model.aliases else model.name,
            "usage": {
                "prompt_tokens": int(outcomes.prompt_tokens[turn.question, action]),
                "completion_tokens": int(outcomes.completion_tokens[turn.question, action]),
            },
        }
        lines = [{**head, "request": request, "response": answer}]
        if number == len(turns) // 4:  # the provider failed once, and was asked again
            lines.insert(0, {**head, "request": request, "error": {"code": "overloaded"}})
        score = {"quality": float(outcomes.quality[turn.question, action]), "judge": "answer-key"}
        judgement = {"session_id": head["session_id"], "turn": turn.turn, **score}
        yield lines, judgement if rng.random() < JUDGED_SHARE else None


def _time(turn: Turn) -> str:
    return (BEGIN + timedelta(minutes=13 * turn.session + 2 * turn.turn)).isoformat()


def matrix(evaluated: list[tuple[str, Turn]], catalog: Catalog) -> Iterator[list[object]]:
    """A header and a row a turn: quality and cost of each model."""
    outcomes = load_outcomes().select(catalog.names)
    cells = [f"{name}|{what}" for name in catalog.names for what in ("quality", "cost")]
    yield ["query_id", "session_id", "turn", "part", "text", *cells]
    action = np.arange(len(catalog))
    for part, turn in evaluated:
        tokens = outcomes.prompt_tokens[turn.question], outcomes.completion_tokens[turn.question]
        measured = zip(outcomes.quality[turn.question], catalog.cost_usd(action, *tokens), strict=True)
        numbers = [number for quality, cost in measured for number in (f"{quality:g}", f"{cost:.7f}")]
        name = f"{part}-{turn.session:03d}"
        yield [outcomes.query_id[turn.question], name, turn.turn, part, turn.text, *numbers]


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(tyro.cli(LogsConfig, description=__doc__))
