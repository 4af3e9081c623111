"""What a look at canary and current sessions decides."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.retraining.config import CanaryConfig
from seqroute_ray.retraining.watch import Seen, Word, compare, read_seen
from tests.retraining.support import serve, session_names
from tests.serving.ledgers.support import opened

CONFIG = CanaryConfig(min_sessions=50, max_sessions=1000, max_quality_loss=0.1, max_error_rise=0.05, max_cost_rise=0.5)


def side(version: str, num: int, quality: float = 0.6, errors: float = 0.0, cost_usd: float = 1.0) -> list[Seen]:
    """Sessions of three turns with these means."""
    rng = np.random.default_rng(num)
    return [
        Seen(
            version=version,
            num_turns=3,
            cost_usd=3 * cost_usd * rng.uniform(0.5, 1.5),
            num_errors=int(rng.binomial(3, errors)),
            num_judged=3,
            score=float(np.clip(rng.normal(quality, 0.2, size=3), 0, 1).sum()),
        )
        for _ in range(num)
    ]


WORDS: list[tuple[dict[str, float], int, Word, str]] = [
    ({}, 400, "promote", "not worse"),
    ({}, 20, "wait", "20 canary and 400 current sessions, 50 of each"),
    ({"quality": 0.4}, 400, "roll_back", "worse: quality"),
    ({"errors": 0.2}, 400, "roll_back", "worse: errors"),
    ({"cost_usd": 2.0}, 400, "roll_back", "worse: cost_usd"),
    ({"cost_usd": 1.3}, 400, "promote", "not worse"),  # within what it may cost
    ({"cost_usd": 1.45}, 60, "wait", "unclear: cost_usd"),
    ({"cost_usd": 1.5}, 1000, "roll_back", "still unclear after 1000 canary sessions"),
]


@pytest.mark.parametrize(("means", "num", "word", "why"), WORDS)
def test_the_word_follows_from_the_figures(means: dict[str, float], num: int, word: Word, why: str) -> None:
    watched = compare([*side("a", 400), *side("b", num, **means)], "a", "b", CONFIG)
    assert (watched.word, why in watched.why) == (word, True), watched


def test_without_feedback_nothing_is_decided() -> None:
    silent = [replace(seen, num_judged=0, score=0.0) for seen in side("b", 400)]
    assert compare([*side("a", 400), *silent], "a", "b", CONFIG).word == "wait"


def test_an_equal_canary_is_rarely_taken_for_a_worse_one() -> None:
    """Three one-sided looks at 2.5 % each: a good policy is lost in 7.5 % of cases at most."""
    words = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        score = rng.normal(0.5, 0.2, size=300)
        seen = [
            Seen(
                version="ab"[i % 2],
                num_turns=2,
                cost_usd=float(rng.uniform(1, 3)),
                num_errors=int(rng.random() < 0.02),
                num_judged=2,
                score=2 * float(score[i]),
            )
            for i in range(300)
        ]
        words.append(compare(seen, "a", "b", CONFIG).word)
    assert words.count("roll_back") <= 0.075 * 200 + 2 * np.sqrt(200 * 0.075 * 0.925)
    assert words.count("promote") >= 100


def test_sessions_are_read_that_began_after_and_had_one_policy(tmp_path: Path) -> None:
    names, place = session_names(), str(tmp_path / "ledger.sqlite")
    serve(tmp_path, names, "old", num_sessions=3)

    async def last() -> tuple[int, float]:
        async with opened(place) as ledger:
            page = await ledger.changed(0, 100)
            log = await ledger.session_log("s0002")
            return page[-1][0], log.turns[-1].record["at_s"]

    watermark, at_s = asyncio.run(last())
    serve(tmp_path, iter(["s0000"]), "new", num_sessions=1)  # goes on, with another policy
    serve(tmp_path, names, "new", num_sessions=2, errors=True)
    seen = read_seen(place, None, watermark, at_s)
    assert [each.version for each in seen] == ["new", "new"]
    assert {(each.num_turns, each.num_errors, each.num_judged) for each in seen} == {(2, 2, 2)}
    assert read_seen(place, None, watermark, at_s + 1000) == []


def test_a_ledger_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_seen(str(tmp_path / "nobody.sqlite"), None, 0, 0.0)
