from typing import Any, Literal

import pytest

from seqroute_ray.serving.json_body import Body, check, read_object
from seqroute_ray.serving.requests import RequestError


class Inner(Body):
    type: Literal["a", "b"] = "a"
    role: Literal["user"] = "user"
    content: str | int = ""


class Outer(Body):
    inner: tuple[Inner, ...] | list[Inner] = ()
    number: float = 0.0


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"number": "secret"}, "invalid_request", "number: should be a valid number, got a text of 6 characters"),
        ({"number": [1]}, "invalid_request", "number: should be a valid number, got a list of 1"),
        ({"number": {}}, "unsupported_parameter", "number: must be small, got an object"),
        ({"inner": [{"type": "c"}]}, "unsupported_parameter", "inner.0.type: should be 'a' or 'b', got 'c'"),
        ({"inner": [{}, {"role": "r" * 99}]}, "invalid_request", f"inner.1.role: should be 'user', got '{'r' * 40}'"),
        ({"inner": [{"content": None}]}, "invalid_request", "inner.0.content: should be a valid string, got None"),
    ],
)
def test_an_error_names_field_rule_and_harmless_value(body: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(Outer, body, {"number": "must be small"} if code == "unsupported_parameter" else {})
    assert (str(caught.value), caught.value.code) == (message, code)
    assert caught.value.__cause__ is None  # whose text would quote the value


def test_an_object_is_read_with_text_of_any_script() -> None:
    assert read_object('{"a": "é漢😀", "b": [1, 2.5, null, true]}'.encode()) == {
        "a": "é漢😀",
        "b": [1, 2.5, None, True],
    }
