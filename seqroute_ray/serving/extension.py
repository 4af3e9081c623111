"""What this router adds to an answer: the `seqroute` object in its body, and the same in short as headers."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from seqroute_ray.core.ledger import Account
from seqroute_ray.core.money import NUSD_PER_USD


class SeqrouteExtension(BaseModel):
    """Why this model, what it cost, and what the session has left; money in USD."""

    model_config = ConfigDict(frozen=True)

    decision_id: str = Field(description="names the turn in GET /v1/decisions/{id} and POST /v1/feedback")
    session_id: str = Field(description="sent as x-session-id it names the same session")
    session_source: str = Field(description="header or field that named the session, or `fingerprint`")
    turn: int = Field(description="position in the session, from 0")
    decision: dict[str, Any] = Field(description="model, lambda, Q-values, what was masked and why, policy version")
    cost_usd: float
    spent_usd: float
    reserved_usd: float
    remaining_usd: float

    def headers(self) -> dict[str, str]:
        """For callers who cannot read the body, and for streams, whose body is still to come."""
        return {
            "x-seqroute-decision-id": self.decision_id,
            "x-seqroute-model": str(self.decision.get("model", "")),
            "x-seqroute-cost-usd": f"{self.cost_usd:.9f}",
            "x-seqroute-remaining-usd": f"{self.remaining_usd:.9f}",
        }


def money(account: Account) -> dict[str, float]:
    """What is spent, reserved and left, apart from each other."""
    return {
        "spent_usd": account.spent_nusd / NUSD_PER_USD,
        "reserved_usd": account.reserved_nusd / NUSD_PER_USD,
        "remaining_usd": account.remaining_nusd / NUSD_PER_USD,
    }


def extended(answer: Mapping[str, Any], extension: SeqrouteExtension) -> dict[str, Any]:
    """A provider's answer, or the last chunk of its stream, with ours beside it."""
    return {**answer, "seqroute": extension.model_dump()}
