import asyncio
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.serving.config import UpstreamConfig, UpstreamTimeouts
from seqroute_ray.serving.upstream import UpstreamClient, UpstreamError, UpstreamFault
from seqroute_ray.serving.usage import Tally, Usage

from .fake_provider import FAULTS, WORD, checked_rates, running_fake_provider

FIELDS = {"messages": [{"role": "user", "content": "What is 7 times 6?"}]}
PROMPT_TOKENS = estimate(extra_texts(FIELDS), [message_text(each) for each in FIELDS["messages"]]).bound
MAX_TOKENS = 36  # four chunks of 8 tokens, and a rest
SENT_TOKENS = 32  # in the first half of the eight events of its stream
TIMEOUTS = UpstreamTimeouts(connect_s=10, first_byte_s=20, silence_s=20, total_s=30)
BRIEF = UpstreamTimeouts(connect_s=0.2, first_byte_s=0.3, silence_s=0.3, total_s=0.6)  # that a test waits for


@dataclass(frozen=True)
class Provider:
    base_url: str
    log: Path

    def call(self, attempt_id: str) -> dict[str, Any]:
        """The log's line on an attempt, which may come a moment after the client hung up."""
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            lines = [json.loads(line) for line in self.log.read_text().splitlines()]
            found = [line for line in lines if line["attempt_id"] == attempt_id]
            if found:
                assert len(found) == 1
                return dict(found[0])
            time.sleep(0.01)
        raise AssertionError(f"{attempt_id} is not in the log")

    def get(self, path: str, body: Any = None) -> Any:
        url, data = self.base_url.removesuffix("/v1") + path, None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, method="GET" if body is None else "PUT")
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    log = tmp_path_factory.mktemp("fake") / "calls.jsonl"
    with running_fake_provider("--calls-log", str(log)) as base_url:
        yield Provider(base_url, log)


def ask(provider: Provider, attempt_id: str, model: str, stream: bool) -> tuple[str, Tally, UpstreamError | None]:
    """Text, tally and error of one call."""

    async def run() -> tuple[str, Tally, UpstreamError | None]:
        upstream = UpstreamConfig(model=model, base_url=provider.base_url, usd_per_m_input=1, usd_per_m_output=1)
        texts: list[str] = []
        async with UpstreamClient([upstream], BRIEF if "stall" in model else TIMEOUTS) as client:
            try:
                answer = await client.start(model, FIELDS, MAX_TOKENS, attempt_id, stream)
                async for payload in answer:
                    texts += [choice["delta"]["content"] for choice in json.loads(payload)["choices"]]
            except UpstreamError as error:
                return "".join(texts), error.tally, error
        whole = answer.body["choices"][0]["message"]["content"] if answer.body else ""
        return whole or "".join(texts), answer.tally, None

    return asyncio.run(run())


# fault -> kind of error, completion tokens billed of a stream and of a whole answer
OUTCOMES: dict[str, tuple[UpstreamFault | None, int, int]] = {
    "": (None, MAX_TOKENS, MAX_TOKENS),
    "429": (UpstreamFault.RATE_LIMIT, 0, 0),
    "500": (UpstreamFault.SERVER, 0, 0),
    "reset-before": (UpstreamFault.TRUNCATED, MAX_TOKENS, MAX_TOKENS),
    "reset-mid": (UpstreamFault.TRUNCATED, SENT_TOKENS, MAX_TOKENS),
    "truncated": (UpstreamFault.TRUNCATED, SENT_TOKENS, MAX_TOKENS),
    "stall-before": (UpstreamFault.TIMEOUT, 0, 0),
    "stall-mid": (UpstreamFault.TIMEOUT, SENT_TOKENS, MAX_TOKENS),
    "bytes": (None, MAX_TOKENS, MAX_TOKENS),
    "malformed": (UpstreamFault.MALFORMED, MAX_TOKENS, MAX_TOKENS),
    "no-usage": (None, MAX_TOKENS, MAX_TOKENS),
    "triple": (None, 3 * MAX_TOKENS, 3 * MAX_TOKENS),
}


def test_every_fault_has_its_outcome() -> None:
    assert set(OUTCOMES) == {"", *FAULTS}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", OUTCOMES)
def test_a_fault_does_what_it_says_and_the_log_what_is_billed(provider: Provider, fault: str, stream: bool) -> None:
    kind, streamed_tokens, whole_tokens = OUTCOMES[fault]
    attempt_id = f"{fault}-{stream}"
    text, tally, error = ask(provider, attempt_id, f"m+{fault}" if fault else "m", stream)
    if fault == "truncated" and not stream:
        kind = UpstreamFault.MALFORMED  # half a JSON object
    assert (error.kind if error else None) == kind
    factor = 3 if fault == "triple" else 1
    line = provider.call(attempt_id)
    if stream and fault == "malformed":  # how much it sent before the client hung up
        assert SENT_TOKENS <= line.pop("completion_tokens") <= streamed_tokens
        line["completion_tokens"], line["completed"] = streamed_tokens, True
    assert line == {
        "attempt_id": attempt_id,
        "model": "m",
        "stream": stream,
        "fault": fault,
        "prompt_tokens": 0 if fault in ("429", "500") else factor * PROMPT_TOKENS,
        "completion_tokens": streamed_tokens if stream else whole_tokens,
        "completed": kind in (None, UpstreamFault.MALFORMED) and fault != "truncated",
    }
    if error is None:
        assert text == WORD * MAX_TOKENS
        assert tally.finished
        usage = Usage(prompt_tokens=factor * PROMPT_TOKENS, completion_tokens=factor * MAX_TOKENS)
        assert tally.usage == (None if fault == "no-usage" else usage)
    elif kind is UpstreamFault.RATE_LIMIT:
        assert error.retry_after_s == 1


def test_a_client_that_hangs_up_is_billed_what_was_sent(provider: Provider) -> None:
    async def run() -> None:
        upstream = UpstreamConfig(
            model="m", base_url=provider.base_url, upstream_model="m+stall-mid", usd_per_m_input=1, usd_per_m_output=1
        )
        async with UpstreamClient([upstream], TIMEOUTS) as client:
            answer = await client.start("m", FIELDS, MAX_TOKENS, "hung-up", stream=True)
            await answer.aclose()

    asyncio.run(run())
    line = provider.call("hung-up")
    assert (line["completion_tokens"], line["completed"]) == (SENT_TOKENS, False)
    assert provider.get("/calls")["in_flight"] == 0


def test_faults_are_drawn_at_their_rates_from_the_seed(tmp_path: Path) -> None:
    drawn = []
    for run in range(2):
        log = tmp_path / f"{run}.jsonl"
        with running_fake_provider(
            "--calls-log", str(log), "--seed", "7", "--faults", "500:0.3", "no-usage:0.2"
        ) as base_url:
            for call in range(120):
                ask(Provider(base_url, log), str(call), "m", stream=False)
            assert Provider(base_url, log).get("/calls") == {"begun": 120, "in_flight": 0}
        drawn.append([json.loads(line)["fault"] for line in log.read_text().splitlines()])
    assert drawn[0] == drawn[1]
    counts = Counter(drawn[0])
    assert 20 < counts["500"] < 55  # 36 expected, 5 standard deviation
    assert 10 < counts["no-usage"] < 42


def test_rates_change_while_it_runs(provider: Provider) -> None:
    assert provider.get("/faults", {"500": 1.0}) == {"500": 1.0}
    _, _, error = ask(provider, "changed", "m", stream=False)
    provider.get("/faults", {})
    assert error is not None
    assert error.kind is UpstreamFault.SERVER
    assert ask(provider, "changed-back", "m", stream=False)[2] is None


def test_an_unknown_fault_is_refused(provider: Provider) -> None:
    _, _, error = ask(provider, "unknown", "m+nothing", stream=False)
    assert error is not None
    assert error.status == 400


@pytest.mark.parametrize("rates", [{"nothing": 0.1}, {"500": -0.1}, {"500": 0.6, "429": 0.6}])
def test_nonsense_rates_are_refused(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="NAME:RATE"):
        checked_rates(rates)
