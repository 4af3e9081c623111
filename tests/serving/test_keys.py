import hashlib
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from seqroute_ray.serving.keys import SCOPES, Caller, KeyConfig, Keyring, Keys, Scope
from seqroute_ray.serving.knobs import KnobDefaults
from seqroute_ray.serving.requests import RequestError

KEY, OTHER = "sr-one", "sr-other"


def entry(of: str = KEY, **fields: Any) -> KeyConfig:
    return KeyConfig(**{"id": "team-a", "sha256": hashlib.sha256(of.encode()).hexdigest(), **fields})


def bearer(key: str = KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def refused(keyring: Keyring, headers: dict[str, str]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        keyring.authenticate(headers)
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "headers",
    [
        bearer(),
        {"authorization": f"bearer  {KEY} "},
        {"x-api-key": KEY},
        {"x-api-key": KEY, **bearer("something else")},
        {"x-api-key": "something else", **bearer()},
    ],
)
def test_a_key_is_known_by_either_header(headers: dict[str, str]) -> None:
    assert Keyring([entry(), entry(OTHER, id="team-b")]).authenticate(headers).id == "team-a"


REFUSED = [
    ({}, "missing_api_key", "an API key is needed"),
    ({"authorization": "Bearer "}, "missing_api_key", "an API key is needed"),
    ({"authorization": f"Basic {KEY}"}, "missing_api_key", "an API key is needed"),
    ({"x-api-key": ""}, "missing_api_key", "an API key is needed"),
    (bearer("sr-on"), "invalid_api_key", "the API key is unknown"),
    (bearer("clé漢"), "invalid_api_key", "the API key is unknown"),
    (bearer(hashlib.sha256(KEY.encode()).hexdigest()), "invalid_api_key", "the API key is unknown"),
]


@pytest.mark.parametrize(("headers", "code", "message"), REFUSED)
def test_without_a_known_key_nobody_passes(headers: dict[str, str], code: str, message: str) -> None:
    error = refused(Keyring([entry()]), headers)
    assert (error.status, error.code) == (401, code)
    assert str(error).startswith(message)
    assert error.headers["www-authenticate"] == "Bearer"


def test_without_keys_in_the_settings_everybody_is_local() -> None:
    for headers in ({}, bearer("dummy")):
        assert Keyring([]).authenticate(headers) == Caller(id="local", scopes=SCOPES)


def test_a_caller_carries_what_its_key_may_do() -> None:
    key = entry(
        scopes=("route",),
        monthly_budget_usd=20,
        default_session_budget_usd=0.05,
        default_lambda_per_usd=2,
        may_set_budget=False,
        may_raise_budget=False,
    )
    assert Keyring([key]).authenticate(bearer()) == Caller(
        id="team-a",
        scopes=("route",),
        defaults=KnobDefaults(session_budget_nusd=50_000_000, lambda_per_usd=2.0),
        monthly_budget_nusd=20 * 10**9,
        may_set_budget=False,
        may_raise_budget=False,
    )


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_that_a_key_lacks_is_named(scope: Scope) -> None:
    Caller(id="a", scopes=(scope,)).require(scope)
    with pytest.raises(RequestError, match=f"API key 'a' needs the scope '{scope}' for this, it has none") as caught:
        Caller(id="a", scopes=()).require(scope)
    assert (caught.value.status, caught.value.code) == (403, "scope_missing")


def test_a_key_passes_its_rate_and_says_when_it_may_go_on() -> None:
    clock = Clock()
    keyring = Keyring([entry(requests_per_minute=30), entry(OTHER, id="team-b")], clock)
    for _ in range(30):
        keyring.authenticate(bearer())
    error = refused(keyring, bearer())
    assert (error.status, error.code, error.headers["retry-after"]) == (429, "rate_limit_exceeded", "2")
    keyring.authenticate(bearer(OTHER))  # another key, without a limit
    clock.now_s += 2
    keyring.authenticate(bearer())
    assert refused(keyring, bearer()).status == 429
    clock.now_s += 3600
    for _ in range(30):  # and not an hour's worth
        keyring.authenticate(bearer())
    assert refused(keyring, bearer()).status == 429


BROKEN = [
    ({"id": "a b"}, "id"),
    ({"id": "a:b"}, "id"),
    ({"id": ""}, "id"),
    ({"sha256": "ABC"}, "sha256"),
    ({"scopes": ["root"]}, "scopes.0"),
    ({"requests_per_minute": 0}, "requests_per_minute"),
    ({"monthly_budget_usd": 0}, "monthly_budget_usd"),
    ({"default_lambda_per_usd": -1}, "default_lambda_per_usd"),
    ({"key": KEY}, "key"),
]


@pytest.mark.parametrize(("fields", "field"), BROKEN)
def test_a_broken_entry_of_the_settings_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        entry(**fields)
    assert ".".join(map(str, caught.value.errors()[0]["loc"])) == field


@pytest.mark.parametrize("twice", [{"id": "team-a"}, {"sha256": entry().sha256}])
def test_each_id_and_each_key_stands_once(twice: dict[str, str]) -> None:
    second = {"id": "team-b", "sha256": "0" * 64, **twice}
    with pytest.raises(ValidationError, match="may stand once"):
        TypeAdapter(Keys).validate_python([entry().model_dump(), second])
    assert (
        len(TypeAdapter(Keys).validate_python([entry().model_dump(), {**second, "id": "c", "sha256": "1" * 64}])) == 2
    )
