"""A round in words: what changed, how sure that is, what was decided and why. For those who answer for it."""

from collections.abc import Mapping
from typing import Any

from seqroute_ray.retraining.state import Round

WORDS = {
    "": "Under way.",
    "refused": "Refused by the gate: nothing serves it.",
    "promoted": "Promoted: it serves all sessions.",
    "rolled_back": "Rolled back: the current policy serves all sessions.",
}
FIGURES = {
    "quality": "quality of a turn",
    "bankruptcy": "sessions that run out of money",
    "cost_usd": "cost of a turn, $",
}


def to_markdown(current: Round) -> str:
    """The report of a round as far as it is."""
    steps = current.steps
    lines = [f"# Retraining, round {current.number}", "", f"**{_verdict(current)}**", ""]
    if "candidate" in steps:
        lines += _what_changed(steps)
    if "judge" in steps:
        lines += _how_sure(steps["judge"])
    if "gate" in steps:
        lines += _gate(steps["gate"])
    if "canary" in steps:
        lines += _canary(steps)
    return "\n".join(lines) + "\n"


def _verdict(current: Round) -> str:
    steps = current.steps
    if not current.outcome and "watch" in steps:
        return f"On trial: {steps['watch']['why']}."
    if not current.outcome and "canary" in steps:
        return f"On trial with {steps['canary']['share']:.0%} of the sessions."
    why = str(steps["watch"]["why"]) if "watch" in steps else ""
    return WORDS[current.outcome] + (f" {why[0].upper()}{why[1:]}." if why else "")


def _what_changed(steps: Mapping[str, Any]) -> list[str]:
    made, logs = steps["candidate"], steps["import"]
    lines = ["## What changed", "", f"- current policy: {steps['export']['current']}"]
    lines.append(f"- new policy: {made['policy_version']}, {made['made']}, over {', '.join(made['models'])}")
    if "start" in made:
        lines.append(
            f"- training began at {made['start']} and took {made['num_steps']} steps on {made['num_transitions']:,} "
            "transitions"
        )
    lines.append(
        f"- sessions: {logs['num_new_sessions']:,} new ones ({logs['num_new_test_sessions']:,} kept for the exam), "
        f"{logs['num_sessions']:,} in all"
    )
    return [*lines, ""]


def _how_sure(judgement: Mapping[str, Any]) -> list[str]:
    how = (
        "every model's answer was measured, so both policies were replayed"
        if judgement["method"] == "replay"
        else "only the answers that were given are known, so they were weighed by how likely each policy is to ask "
        f"for them (worth {judgement['effective_sample_size']:.0f} sessions)"
    )
    lines = ["## How sure", "", f"On {judgement['num_sessions']:,} sessions that neither has learned from; {how}.", ""]
    if judgement["why_not"]:
        return [*lines, f"Nothing can be concluded: {judgement['why_not']}.", ""]
    lines += ["| budget | figure | current | new | difference, 95 % sure |", "|---|---|---|---|---|"]
    for row in judgement["differences"]:
        low, high = row["interval"]
        lines.append(
            f"| {row['budget']:g}x | {FIGURES[row['figure']]} | {row['current']:.4g} | {row['new']:.4g} | "
            f"{low:+.4g} to {high:+.4g} |"
        )
    return [*lines, ""]


def _gate(gate: Mapping[str, Any]) -> list[str]:
    lines = ["## The gate", "", "| check | | why |", "|---|---|---|"]
    lines += [f"| {c['name']} | {'passed' if c['passed'] else '**failed**'} | {c['why']} |" for c in gate["checks"]]
    return [*lines, ""]


def _canary(steps: Mapping[str, Any]) -> list[str]:
    canary, watch = steps["canary"], steps.get("watch", {})
    lines = ["## The trial", "", f"Since {canary['at']}, for {canary['share']:.0%} of the sessions."]
    if not steps["gate"]["passed"]:
        lines.append("The gate had refused it; it was tried by force.")
    if "num_canary" in watch:
        lines.append(f"{watch['num_canary']:,} sessions on trial, {watch['num_current']:,} beside them.")
    if watch.get("compared"):
        lines += ["", "| figure | current | on trial | difference, 95 % sure | limit |", "|---|---|---|---|---|"]
        for row in watch["compared"]:
            low, high = row["interval"]
            lines.append(
                f"| {row['figure']} | {row['current']:.4g} | {row['canary']:.4g} | {low:+.4g} to {high:+.4g} | "
                f"{row['limit']:+.4g} |"
            )
    return [*lines, ""]
