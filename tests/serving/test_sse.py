import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.serving.sse import BOM, Event, SseError, SseParser, encode

LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
# Lines of all kinds: fields with and without space, of other names, comments, empty ones, ends in the wrong place.
LINES = st.one_of(
    st.sampled_from([b"", b"data", b"data:", b"data: ", b"data:  x", b"event: error", b"event", b": ping", b"id: 7"]),
    st.binary(max_size=8).map(lambda raw: b"data:" + raw),
    st.binary(max_size=8),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(LINES, max_size=12))
    return draw(st.sampled_from([b"", BOM])) + b"".join(line + draw(LINE_ENDS) for line in lines)


def events_of(*parts: bytes) -> list[Event]:
    parser = SseParser()
    return [event for part in parts for event in parser.feed(part)]


@settings(deadline=None)  # the machine may be busy
@given(streams(), st.data())
def test_where_the_bytes_are_split_makes_no_difference(raw: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    parts = [raw[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert events_of(*parts) == events_of(raw)
    assert events_of(*(raw[at : at + 1] for at in range(len(raw)))) == events_of(raw)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.binary(), st.sampled_from([b"", b"error", b"ping"])), max_size=5))
def test_what_is_encoded_is_parsed_again(pairs: list[tuple[bytes, bytes]]) -> None:
    raw = b"".join(encode(data, name) for data, name in pairs)
    wanted = [Event(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), name) for data, name in pairs]
    assert events_of(raw) == wanted


@settings(deadline=None)  # the machine may be busy
@given(st.recursive(st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)))
def test_json_is_one_line_and_arrives_as_it_was(value: object) -> None:
    raw = json.dumps(value).encode()
    assert encode(raw) == b"data: " + raw + b"\n\n"
    assert events_of(encode(raw)) == [Event(raw)]


# (stream, its events), worked by hand from the standard
WORKED = [
    (b"data: a\n\n", [Event(b"a")]),
    (b"data:a\r\n\r\n", [Event(b"a")]),
    (b"data: a\r\rdata: b\r\r", [Event(b"a"), Event(b"b")]),
    (b"data: a\ndata: b\n\n", [Event(b"a\nb")]),
    (b"data\n\n", [Event(b"")]),
    (b"data: a\n", []),  # not ended
    (b": comment\n\n", []),
    (b"event: error\n\ndata: a\n\n", [Event(b"a")]),  # a name without data is no event, and is forgotten
    (b"event: error\ndata: a\n\n", [Event(b"a", b"error")]),
    (b"id: 1\nretry: 5\ndata: a\nother: b\n\n", [Event(b"a")]),
    (b"data:  a \n\n", [Event(b" a ")]),  # only one space goes
    (BOM + b"data: a\n\n", [Event(b"a")]),
    (b"data: a\n\n" + BOM + b"data: b\n\n", [Event(b"a")]),  # only at the start
    ("data: zwölf\u2028\x0b\n\n".encode(), [Event("zwölf\u2028\x0b".encode())]),  # line ends of str, not of the format
]


@pytest.mark.parametrize(("raw", "wanted"), WORKED)
def test_the_standards_rules(raw: bytes, wanted: list[Event]) -> None:
    assert events_of(raw) == wanted


@pytest.mark.parametrize("raw", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"])
def test_the_end_gives_the_event_whose_empty_line_is_missing(raw: bytes) -> None:
    parser = SseParser()
    assert list(parser.feed(raw)) == []
    assert list(parser.end()) == [Event(b"[DONE]")]


LONG = [b"data: " + b"x" * 100 + b"\n\n", b"data: xxxxxxxx\n" * 10 + b"\n", b":" + b"x" * 100 + b"\n"]


@pytest.mark.parametrize("long", LONG)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_long_event_is_an_error_after_those_before_it(long: bytes, size: int) -> None:
    raw, parser, events = b"data: a\n\n" + long, SseParser(max_event_bytes=64), []

    def feed_all() -> None:
        for at in range(0, len(raw), size):
            for event in parser.feed(raw[at : at + size]):
                events.append(event)

    with pytest.raises(SseError, match="at most 64 bytes"):
        feed_all()
    assert events == [Event(b"a")]


def test_an_event_of_many_parts_is_put_together_once() -> None:
    parser, piece = SseParser(), b"x" * 16
    events = [
        event for _ in range(60_000) for event in parser.feed(piece)
    ]  # 60,000 copies of a megabyte would take minutes
    assert events == []
