import copy
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.config import load_config

from .support import random_artefact, settings, trio, write_settings

URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def valid(tmp_path: Path) -> dict[str, Any]:
    return settings(tmp_path, random_artefact(trio()), URL)


def test_valid_settings_load_with_their_defaults(tmp_path: Path, valid: dict[str, Any]) -> None:
    config = load_config(write_settings(tmp_path, valid))
    assert config.default_budget_usd is None
    assert config.default_max_tokens == 1024
    assert config.upstreams[0].sent_model == "llama-3.1-8b-instruct"
    assert config.policy.canary is config.policy.shadow is None
    assert (config.policy.epsilon, config.keys, config.retries) == (0.0, (), 1)


def test_relative_paths_start_at_the_current_folder(
    tmp_path: Path, valid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = {
        "artefact": "policy",
        "canary": {"artefact": "next", "share": 0.1},
        "shadow": {"artefact": "s3://team/policies/3", "share": 1},
    }
    config = load_config(write_settings(tmp_path, {**valid, "policy": policy, "ledger": "books/ledger.sqlite"}))
    assert config.policy.locations() == [str(tmp_path / "policy"), str(tmp_path / "next"), "s3://team/policies/3"]
    assert config.ledger == str(tmp_path / "books/ledger.sqlite")


@pytest.mark.parametrize("ledger", ["redis://127.0.0.1:6379/0", "rediss://example.com:6380/1"])
def test_a_ledger_elsewhere_is_no_path(tmp_path: Path, valid: dict[str, Any], ledger: str) -> None:
    assert load_config(write_settings(tmp_path, {**valid, "ledger": ledger})).ledger == ledger


BROKEN_FIELDS = [
    ("budget_usd", 3, "budget_usd: Extra inputs are not permitted"),
    ("default_budget_usd", 0, "default_budget_usd: Input should be greater than or equal to 0.000000001, got 0"),
    ("default_budget_usd", float("nan"), "default_budget_usd: "),
    ("default_lambda_per_usd", -1, "default_lambda_per_usd: "),
    ("default_lambda_per_usd", float("inf"), "default_lambda_per_usd: "),
    ("default_max_tokens", 0, "default_max_tokens: "),
    ("upstream_timeout_s", 0, "upstream_timeout_s: "),
    ("upstreams", [], "upstreams: "),
    ("policy", None, "policy: "),
    ("policy", {"artefact": "p", "epsilon": 1.1}, "policy.epsilon: "),
    ("policy", {"artefact": "p", "canary": {"artefact": "q", "share": 0}}, "policy.canary.share: "),
    ("policy", {"artefact": "p", "shadow": {"artefact": "q", "share": 1.5}}, "policy.shadow.share: "),
    ("policy", {"artefact": "p", "canary": {"artefact": "q"}}, "policy.canary.share: Field required"),
    ("max_body_bytes", 10, "max_body_bytes: "),
    ("max_header_bytes", 10, "max_header_bytes: "),
    ("idempotency_wait_s", -1, "idempotency_wait_s: "),
    ("retries", 11, "retries: "),
    ("keys", [{"id": "a"}], "keys.0.sha256: Field required"),
]


@pytest.mark.parametrize(("field", "value", "message"), BROKEN_FIELDS)
def test_a_broken_field_is_named_with_its_file(
    tmp_path: Path, valid: dict[str, Any], field: str, value: Any, message: str
) -> None:
    path = write_settings(tmp_path, {**valid, field: value})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


BROKEN_UPSTREAMS = [
    ({"base_url": "ftp://127.0.0.1"}, "must be http://HOST/PATH"),
    ({"base_url": "http://"}, "must be http://HOST/PATH"),
    ({"base_url": "http://host:99999/v1"}, "Port out of range"),
    ({"usd_per_m_input": -1}, r"upstreams\.0\.usd_per_m_input: "),
    ({"usd_per_m_cached_input": -1}, r"upstreams\.0\.usd_per_m_cached_input: "),
    ({"key": "secret"}, r"upstreams\.0\.key: Extra inputs"),
    ({"max_tokens_field": "length"}, r"upstreams\.0\.max_tokens_field: "),
]


@pytest.mark.parametrize(("change", "message"), BROKEN_UPSTREAMS)
def test_a_broken_upstream_is_named(
    tmp_path: Path, valid: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    fields = copy.deepcopy(valid)
    fields["upstreams"][0].update(change)
    with pytest.raises(ConfigError, match=message):
        load_config(write_settings(tmp_path, fields))


@pytest.mark.parametrize(("text", "message"), [("a: [", "not YAML"), ("- 1", "must hold a mapping"), ("", "mapping")])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "serving.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "serving.yaml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
