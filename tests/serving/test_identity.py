import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.serving.identity import (
    CLIENT_HEADERS,
    identify,
    ledger_session_id,
    session_hints,
    split_session_id,
    without_session_ids,
)
from seqroute_ray.serving.requests import RequestError, SessionHints

OWNERS = st.text(max_size=6) | st.sampled_from(["a", "a:", "a%3A", ":", "%"])


def body(*messages: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    pairs = messages or (("user", "hi"),)
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **fields}


def source_and_id(headers: dict[str, str], **fields: Any) -> tuple[str, str]:
    identity = identify("team", headers, session_hints(body(**fields)))
    assert identity.session_id == f"team:{identity.client_id}"
    return identity.source, identity.client_id


@given(OWNERS, OWNERS, OWNERS, OWNERS)
def test_no_two_owners_share_a_session_whatever_their_clients_send(a: str, x: str, b: str, y: str) -> None:
    assert (ledger_session_id(a, x) == ledger_session_id(b, y)) == ((a, x) == (b, y))
    assert split_session_id(ledger_session_id(a, x)) == (a, x)


def test_our_header_comes_first_then_clients_headers_in_their_order() -> None:
    headers = {name: f"id of {name}" for name in ("x-session-id", *CLIENT_HEADERS)}
    for name in ("x-session-id", *CLIENT_HEADERS):
        assert source_and_id(headers, prompt_cache_key="k") == (name, f"id of {name}")
        del headers[name]
    assert source_and_id(headers, prompt_cache_key="k") == ("prompt_cache_key", "k")


CLAUDE_JSON = json.dumps({"device_id": "d", "account_uuid": "", "session_id": "54c1eb09"})
NAMED = [
    ("metadata.user_id", "54c1eb09", {"metadata": {"user_id": CLAUDE_JSON, "session_id": "m"}}),
    ("metadata.user_id", "57a1-21ec", {"metadata": {"user_id": "user_1f_account__session_57a1-21ec"}}),
    ("litellm_session_id", "l", {"litellm_session_id": "l", "session_id": "o", "metadata": {"session_id": "m"}}),
    ("session_id", "o", {"session_id": "o", "metadata": {"session_id": "m"}}),
    ("metadata.session_id", "m", {"metadata": {"session_id": "m", "langfuse_session_id": "f"}}),
    ("metadata.langfuse_session_id", "f", {"metadata": {"langfuse_session_id": "f"}, "prompt_cache_key": "k"}),
    ("prompt_cache_key", "k", {"prompt_cache_key": "k", "metadata": {"session_id": "", "user_id": "somebody"}}),
]


@pytest.mark.parametrize(("source", "client_id", "fields"), NAMED)
def test_a_session_is_named_by_what_real_clients_send(source: str, client_id: str, fields: dict[str, Any]) -> None:
    assert source_and_id({}, **fields) == (source, client_id)


@pytest.mark.parametrize("user_id", [3, None, "", "{", "[" * 9, '{"session_id": 3}', "{}", "user_1", "[1]", "{" * 9999])
def test_a_user_id_without_a_session_names_none(user_id: object) -> None:
    assert source_and_id({}, metadata={"user_id": user_id})[0] == "fingerprint"


def test_turns_that_begin_alike_are_one_session_without_any_name() -> None:
    first = session_hints(body(("system", "s"), ("user", "q")))
    parts = [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]
    later = session_hints(body(("system", "s"), ("user", parts), ("assistant", "a"), ("system", "t"), ("user", "more")))
    assert identify("t", {}, first) == identify("t", {}, later)
    assert identify("t", {}, first).client_id.startswith("opening-")
    assert identify("t", {}, first).session_id != identify("u", {}, first).session_id


OTHER_OPENINGS = [
    body(("system", "other"), ("user", "q")),
    body(("system", "s"), ("user", "other")),
    body(("system", "sq"), ("user", "")),
    body(("system", "s"), ("user", "q"), tools=[{"type": "function"}]),
    body(("system", "s"), ("user", "q"), user="ann"),
    body(("system", "s"), ("user", "q"), safety_identifier="ann"),
]


def test_another_opening_or_another_person_is_another_session() -> None:
    prints = {session_hints(other).fingerprint for other in [body(("system", "s"), ("user", "q")), *OTHER_OPENINGS]}
    assert len(prints) == 1 + len(OTHER_OPENINGS)


def test_a_name_given_to_an_unnamed_session_finds_it_again() -> None:
    unnamed = identify("t", {}, session_hints(body()))
    assert identify("t", {"x-session-id": unnamed.client_id}, SessionHints()).session_id == unnamed.session_id


BROKEN = [
    ("x-session-id", "", "must have 1 to 256 characters, got 0"),
    ("x-session-id", "s" * 257, "must have 1 to 256 characters, got 257"),
    ("x-session-id", "a\nb", "must be printable, without spaces at its ends, got 'a\\nb'"),
    ("x-session-id", " a", "must be printable, without spaces at its ends, got ' a'"),
    ("session-id", "s" * 257, "must have 1 to 256 characters, got 257"),
]


@pytest.mark.parametrize(("name", "value", "message"), BROKEN)
def test_an_unusable_name_is_refused_not_ignored(name: str, value: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        identify("t", {name: value}, SessionHints(fingerprint="f"))
    assert str(caught.value) == f"{name}: {message}"
    assert caught.value.status == 400


def test_names_of_sessions_stay_here_and_the_rest_goes_upstream() -> None:
    sent = {"litellm_session_id": "l", "session_id": "s", "prompt_cache_key": "k", "metadata": {"session_id": "m"}}
    assert without_session_ids(sent) == {"prompt_cache_key": "k"}
    assert without_session_ids({"metadata": {"session_id": "m", "a": "b"}}) == {"metadata": {"a": "b"}}
    assert without_session_ids({"metadata": None}) == {"metadata": None}
