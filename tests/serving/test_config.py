import copy
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.errors import ArtefactError, ConfigError
from seqroute_ray.serving.config import UpstreamTimeouts, load_artefact, load_config

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
    assert config.upstream_timeouts == UpstreamTimeouts(connect_s=10, first_byte_s=60, silence_s=30, total_s=120)
    assert load_artefact(config).catalog == trio()


def test_relative_paths_start_at_the_current_folder(
    tmp_path: Path, valid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(write_settings(tmp_path, {**valid, "artefact_dir": "policy"}))
    assert config.artefact_dir == tmp_path / "policy"


BROKEN_FIELDS = [
    ("budget_usd", 3, "budget_usd: Extra inputs are not permitted"),
    ("default_budget_usd", 0, "default_budget_usd: Input should be greater than or equal to 0.000000001, got 0"),
    ("default_budget_usd", float("nan"), "default_budget_usd: "),
    ("default_lambda_per_usd", -1, "default_lambda_per_usd: "),
    ("default_lambda_per_usd", float("inf"), "default_lambda_per_usd: "),
    ("default_max_tokens", 0, "default_max_tokens: "),
    ("upstream_timeout_s", 0, "upstream_timeout_s: "),
    ("upstream_connect_timeout_s", -1, "upstream_connect_timeout_s: "),
    ("upstream_first_byte_timeout_s", float("nan"), "upstream_first_byte_timeout_s: "),
    ("upstream_silence_timeout_s", 0, "upstream_silence_timeout_s: "),
    ("upstreams", [], "upstreams: "),
    ("artefact_dir", None, "artefact_dir: "),
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
    ({"usd_per_m_input": -1}, r"upstreams\.0\.usd_per_m_input: "),
    ({"usd_per_m_cached_input": -1}, r"upstreams\.0\.usd_per_m_cached_input: "),
    ({"usd_per_m_reasoning": float("inf")}, r"upstreams\.0\.usd_per_m_reasoning: "),
    ({"key": "secret"}, r"upstreams\.0\.key: Extra inputs"),
    ({"max_tokens_field": "length"}, r"upstreams\.0\.max_tokens_field: "),
    ({"model": "gpt-9"}, "'gpt-9' is not in the policy's catalog; known: llama"),
    ({"model": "gpt-4o-2024-08-06"}, "'gpt-4o-2024-08-06' is named 2 times"),
    ({"usd_per_m_output": 0.23}, r"usd_per_m_output is 0.23, the policy was trained for 0.22"),
    ({"api_key_env": "SEQROUTE_TEST_UNSET"}, "environment variable SEQROUTE_TEST_UNSET is not set"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN_UPSTREAMS)
def test_a_broken_upstream_is_refused_at_start_up(
    tmp_path: Path, valid: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    fields = copy.deepcopy(valid)
    fields["upstreams"][0].update(change)
    with pytest.raises(ConfigError, match=message):
        load_artefact(load_config(write_settings(tmp_path, fields)))


def test_a_model_without_upstream_is_refused(tmp_path: Path, valid: dict[str, Any]) -> None:
    path = write_settings(tmp_path, {**valid, "upstreams": valid["upstreams"][1:]})
    with pytest.raises(ConfigError, match=r"routes to llama-3\.1-8b-instruct, which no upstream serves"):
        load_artefact(load_config(path))


def test_a_missing_policy_is_refused(tmp_path: Path, valid: dict[str, Any]) -> None:
    path = write_settings(tmp_path, {**valid, "artefact_dir": str(tmp_path / "none")})
    with pytest.raises(ArtefactError, match="no manifest"):
        load_artefact(load_config(path))


@pytest.mark.parametrize(("text", "message"), [("a: [", "not YAML"), ("- 1", "must hold a mapping"), ("", "mapping")])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "serving.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "serving.yaml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_the_repositorys_example_names_the_bundled_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqroute_ray.serving.config import check_upstreams

    monkeypatch.chdir(Path(__file__).parents[2])
    check_upstreams(load_config(Path("serve_configs/local_upstreams.yaml")), trio())
