"""POST /v1/feedback: a score for an answer or a whole session, late, repeated, from a user or a judge."""

import time
from typing import Annotated

from pydantic import Field

from seqroute_ray.core.ledger import Feedback
from seqroute_ray.serving.identity import check_client_id, ledger_session_id
from seqroute_ray.serving.json_body import Body, check, read_object
from seqroute_ray.serving.requests import RequestError

Name = Annotated[str, Field(min_length=1, max_length=256)]


class FeedbackRequest(Body):
    """One of decision_id and session_id, and how good it was."""

    decision_id: Name | None = None
    session_id: Name | None = None
    score: float = Field(ge=0, le=1)
    judge: str = Field("user", min_length=1, max_length=128, description="The last score of a judge counts")


def read_feedback(raw: bytes, owner: str) -> Feedback:
    """Raises RequestError. A session's target is its name in the ledger: of this owner, whatever it is called."""
    body = read_object(raw)
    check(FeedbackRequest, body, {})
    decision_id, session_id = body.get("decision_id"), body.get("session_id")
    if (decision_id is None) == (session_id is None):
        raise RequestError("decision_id, session_id: exactly one of them says what the score is for")
    target = str(decision_id)
    if session_id is not None:
        check_client_id("session_id", session_id)
        target = ledger_session_id(owner, session_id)
    judge = body.get("judge", FeedbackRequest.model_fields["judge"].default)
    return Feedback(target=target, judge=judge, score=float(body["score"]), at_s=time.time(), owner=owner)
