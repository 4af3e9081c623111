"""A canary against the current policy on the sessions that both served at the same time: promote, end it, or wait.

Only whole sessions of one version count that began after the canary did. Sessions were dealt to the sides by a hash,
so the two are alike but for the policy, and each is one draw: what happens inside a session hangs together.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.ledger import SessionLog
from seqroute_ray.core.money import to_usd
from seqroute_ray.retraining.config import CanaryConfig
from seqroute_ray.serving.decision_log import rows_of
from seqroute_ray.serving.ledgers.commands import existing_ledger

Z_975 = 1.959964  # of the normal distribution: sides have min_sessions and more
PAGE = 500  # sessions that are asked for at once
Word = Literal["promote", "roll_back", "wait"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one session tells."""

    version: str  # hash of the policy that decided all its turns
    num_turns: int
    cost_usd: float
    num_errors: int  # turns that did not finish, or took more than one attempt
    num_judged: int  # turns with a score
    score: float  # their sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One figure of both sides."""

    figure: Literal["quality", "errors", "cost_usd"]  # all of a turn
    current: float
    canary: float
    interval: tuple[float, float]  # 95 %, of canary - current
    limit: float  # of the difference; quality may not lie below it, the others not above


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a look at the decision log says."""

    num_current: int  # sessions
    num_canary: int
    compared: tuple[Compared, ...]
    word: Word
    why: str


def read_seen(ledger: str, password_env: str | None, after: int, since_s: float) -> list[Seen]:
    """Sessions that changed after a watermark of the ledger and began at since_s or later."""

    async def read() -> list[Seen]:
        found, number = dict[str, Seen | None](), after
        async with existing_ledger(ledger, password_env) as store:
            while page := await store.changed(number, PAGE):
                for _, session in page:
                    if session not in found:
                        found[session] = seen_of(await store.session_log(session), since_s)
                number = page[-1][0]
        return [seen for seen in found.values() if seen is not None]

    return asyncio.run(read())


def seen_of(log: SessionLog, since_s: float) -> Seen | None:
    """None where a session is no draw of either side."""
    records = [turn.record for turn in log.turns]
    versions = {record["policy_version"] for record in records}
    if not records or records[0]["turn"] != 0 or records[0]["at_s"] < since_s or len(versions) != 1:
        return None
    scores = [row["quality"] for row in rows_of(log) if row["quality"] is not None]
    return Seen(
        version=versions.pop(),
        num_turns=len(records),
        cost_usd=float(to_usd(np.array(sum(record["cost_nusd"] for record in records)))),
        num_errors=sum(not record["finished"] or bool(record["failed_attempts"]) for record in records),
        num_judged=len(scores),
        score=float(sum(scores)),
    )


def compare(seen: Sequence[Seen], current: str, canary: str, config: CanaryConfig) -> Watched:
    """current, canary: hashes of the two policies."""
    sides = [[each for each in seen if each.version == version] for version in (current, canary)]
    num_current, num_canary = map(len, sides)

    def word(compared: Sequence[Compared], word: Word, why: str) -> Watched:
        return Watched(num_current=num_current, num_canary=num_canary, compared=tuple(compared), word=word, why=why)

    if min(num_current, num_canary) < config.min_sessions:
        why = f"{num_canary} canary and {num_current} current sessions, {config.min_sessions} of each are asked for"
        return word([], "wait", why)
    if not all(sum(each.num_judged for each in side) for side in sides):
        return word([], "wait", "a side has no feedback at all; without it nobody knows how good the answers are")
    compared = _figures(sides, config)
    worse = [one for one in compared if _is_worse(one)]
    if worse:
        return word(compared, "roll_back", "; ".join(f"worse: {_said(one)}" for one in worse))
    unclear = [one for one in compared if not _is_fine(one)]
    if not unclear:
        return word(compared, "promote", "not worse in quality, errors and cost")
    why = "; ".join(f"unclear: {_said(one)}" for one in unclear)
    if num_canary >= config.max_sessions:
        return word(compared, "roll_back", f"still unclear after {num_canary} canary sessions: {why}")
    return word(compared, "wait", why)


def _figures(sides: Sequence[Sequence[Seen]], config: CanaryConfig) -> list[Compared]:
    def columns(top: str, bottom: str) -> list[tuple[FloatArray, FloatArray]]:
        return [(_column(side, top), _column(side, bottom)) for side in sides]

    cost = columns("cost_usd", "num_turns")
    cost_limit = config.max_cost_rise * float(cost[0][0].sum() / cost[0][1].sum())
    return [
        _compared("quality", columns("score", "num_judged"), -config.max_quality_loss),
        _compared("errors", columns("num_errors", "num_turns"), config.max_error_rise),
        _compared("cost_usd", cost, cost_limit),
    ]


def _column(side: Sequence[Seen], name: str) -> FloatArray:
    return np.array([getattr(each, name) for each in side], dtype=np.float64)


def _compared(
    figure: Literal["quality", "errors", "cost_usd"], sides: Sequence[tuple[FloatArray, FloatArray]], limit: float
) -> Compared:
    (current, current_variance), (canary, canary_variance) = (_ratio(top, bottom) for top, bottom in sides)
    error = Z_975 * float(np.sqrt(current_variance + canary_variance))
    difference = canary - current
    return Compared(
        figure=figure,
        current=current,
        canary=canary,
        interval=(difference - error, difference + error),
        limit=limit,
    )


def _ratio(top: FloatArray, bottom: FloatArray) -> tuple[float, float]:
    """Sum over sum, sessions being the draws, and its variance (the delta method)."""
    value = float(top.sum() / bottom.sum())
    influence = (top - value * bottom) / bottom.sum()
    return value, float(np.sum(influence**2) * len(top) / (len(top) - 1))


def _is_worse(one: Compared) -> bool:
    """Beyond chance. Money is another matter: only a rise above the limit is worse."""
    low, high = one.interval
    if one.figure == "quality":
        return high < 0
    return low > (one.limit if one.figure == "cost_usd" else 0)


def _is_fine(one: Compared) -> bool:
    """So much worse as the limit it is not, beyond chance."""
    return one.interval[0] >= one.limit if one.figure == "quality" else one.interval[1] <= one.limit


def _said(one: Compared) -> str:
    low, high = one.interval
    return (
        f"{one.figure} {one.current:.5g} -> {one.canary:.5g}, difference {low:+.5g} to {high:+.5g}, "
        f"limit {one.limit:+.5g}"
    )
