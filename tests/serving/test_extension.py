from openai.types.chat import ChatCompletion

from seqroute_ray.core.ledger import Account
from seqroute_ray.serving.extension import SeqrouteExtension, extended, money

ACCOUNT = Account("s", budget_nusd=50_000_000, spent_nusd=30_000_000, reserved_nusd=5_000_000)
ANSWER = {
    "id": "c1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
}


def extension() -> SeqrouteExtension:
    return SeqrouteExtension(
        decision_id="d1",
        session_id="s",
        session_source="x-session-id",
        turn=2,
        decision={"model": "m", "lambda_per_usd": 0.0},
        cost_usd=0.001,
        **money(ACCOUNT),
    )


def test_spent_reserved_and_remaining_are_shown_apart() -> None:
    assert money(ACCOUNT) == {"spent_usd": 0.03, "reserved_usd": 0.005, "remaining_usd": 0.015}


def test_openais_client_reads_an_extended_answer() -> None:
    read = ChatCompletion.model_validate(extended(ANSWER, extension()))
    assert read.choices[0].message.content == "a"
    assert read.model_extra == {"seqroute": extension().model_dump()}


def test_headers_say_the_same_in_short() -> None:
    assert extension().headers() == {
        "x-seqroute-decision-id": "d1",
        "x-seqroute-model": "m",
        "x-seqroute-cost-usd": "0.001000000",
        "x-seqroute-remaining-usd": "0.015000000",
    }
