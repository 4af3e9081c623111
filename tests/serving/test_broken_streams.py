"""What a stream that broke off costs; over real HTTP, from a provider that ends it after half."""

import json
import math
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.serving.config import load_config
from seqroute_ray.serving.pricing import Pricing
from seqroute_ray.serving.prompt_tokens import MIN_BYTES_PER_TOKEN

from .fake_provider import WORD, running_fake_provider
from .support import QUESTIONS, random_artefact, running_api, settings, trio, write_settings

MAX_TOKENS = 64
PROMPT = QUESTIONS[0]


def get(url: str, body: Any = None) -> tuple[dict[str, str], bytes]:
    headers = {"x-session-id": "s", "x-session-budget-usd": "0.01", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as response:
        return {name.lower(): value for name, value in response.headers.items()}, response.read()


@pytest.mark.parametrize("unseen_tokens", [0, 5, 256])
def test_a_broken_stream_pays_for_what_may_have_been_generated_unseen(tmp_path: Path, unseen_tokens: int) -> None:
    log = tmp_path / "calls.jsonl"
    with running_fake_provider("--calls-log", str(log), "--faults", "truncated:1") as provider_url:
        fields = settings(tmp_path, random_artefact(trio()), provider_url) | {"unseen_stream_tokens": unseen_tokens}
        config = load_config(write_settings(tmp_path, fields))
        with running_api(config) as base_url:
            body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": MAX_TOKENS, "stream": True}
            headers, raw = get(f"{base_url}/v1/chat/completions", body)
            session = json.loads(get(f"{base_url}/v1/sessions/s")[1])
            record = json.loads(get(f"{base_url}/v1/decisions/{headers['x-seqroute-decision']}")[1])
    (call,) = map(json.loads, log.read_text().splitlines())
    assert 0 < call["completion_tokens"] < MAX_TOKENS == record["max_tokens"]
    assert b'"error"' in raw
    price = Pricing.of(next(each for each in config.upstreams if each.model == record["model"]))
    seen_tokens = math.ceil(call["completion_tokens"] * len(WORD) / MIN_BYTES_PER_TOKEN)
    num_tokens = min(MAX_TOKENS, seen_tokens + unseen_tokens)
    assert round(session["spent_usd"] * 1e9) == price.worst_case_nusd(call["prompt_tokens"], num_tokens)
    assert session["reserved_usd"] == 0
