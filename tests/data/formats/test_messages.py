import pytest

from seqroute_ray.data.formats.messages import last_user_text

PARTS = [{"type": "text", "text": "a"}, {"type": "image_url"}, "stray", {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "first"}, {"role": "user", "content": "last"}], "last"),
        ([{"role": "user", "content": "asked"}, {"role": "assistant", "content": "answered"}], "asked"),
        ([{"role": "user", "content": PARTS}], "a\nb"),
        ([{"role": "user", "content": "first"}, {"role": "user", "content": [{"type": "image_url"}]}], None),
        ([{"role": "user", "content": ""}], None),
        ([{"role": "user"}, "stray"], None),
        ({"role": "user", "content": "no list"}, None),
        (None, None),
    ],
)
def test_the_text_is_that_of_the_last_user_message(messages: object, text: str | None) -> None:
    assert last_user_text(messages) == text
