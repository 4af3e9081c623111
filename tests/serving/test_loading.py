"""What is checked between the settings and the first request."""

import copy
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.errors import ArtefactError, ConfigError
from seqroute_ray.core.storage import Folder
from seqroute_ray.serving.config import load_config
from seqroute_ray.serving.loading import check_upstreams, fetch_artefact, load_policies
from seqroute_ray.serving.policies import Policies

from .support import random_artefact, settings, spec, trio, write_settings

URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def valid(tmp_path: Path) -> dict[str, Any]:
    return settings(tmp_path, random_artefact(trio()), URL)


def load(folder: Path, fields: dict[str, Any]) -> Policies:
    config = load_config(write_settings(folder, fields))
    return load_policies(config, config.policy)


def test_a_policy_is_loaded_with_the_prices_of_its_upstreams(tmp_path: Path, valid: dict[str, Any]) -> None:
    valid["upstreams"][0]["usd_per_m_cached_input"] = 0.11
    policies = load(tmp_path, valid)
    assert policies.current.artefact.catalog == trio()
    assert policies.current.version == random_artefact(trio()).version
    assert [price.cache_saving_nusd(1000) for price in policies.current.pricing] == [110_000, 0, 0]
    assert policies.routers == [policies.current]


BROKEN_UPSTREAMS = [
    ({"model": "gpt-9"}, "routes to llama-3.1-8b-instruct, which no upstream serves"),
    ({"model": "gpt-4o-2024-08-06"}, "'gpt-4o-2024-08-06' is named 2 times"),
    ({"usd_per_m_output": 0.23}, r"usd_per_m_output is 0.23, the policy was trained for 0.22"),
    ({"usd_per_m_input": 0.0}, r"usd_per_m_input is 0, the policy was trained for 0.22"),
    ({"api_key_env": "SEQROUTE_TEST_UNSET"}, "environment variable SEQROUTE_TEST_UNSET is not set"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN_UPSTREAMS)
def test_a_broken_upstream_is_refused_at_start_up(
    tmp_path: Path, valid: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    fields = copy.deepcopy(valid)
    fields["upstreams"][0].update(change)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, fields)


def test_an_upstream_of_no_model_waits_for_a_policy_that_knows_it(tmp_path: Path, valid: dict[str, Any]) -> None:
    new = spec("newcomer", 1.0, 2.0)
    upstream = {"model": "newcomer", "base_url": URL, "usd_per_m_input": 1.0, "usd_per_m_output": 2.0}
    catalog = type(trio())((*trio().models, new))
    random_artefact(catalog).save(tmp_path / "next")
    config = load_config(write_settings(tmp_path, {**valid, "upstreams": [*valid["upstreams"], upstream]}))
    assert len(load_policies(config, config.policy).current.artefact.catalog) == 3
    swapped = load_policies(config, config.policy.model_copy(update={"artefact": str(tmp_path / "next")}))
    assert swapped.current.artefact.catalog.names[-1] == "newcomer"


def test_a_missing_policy_is_refused(tmp_path: Path, valid: dict[str, Any]) -> None:
    for policy in (
        {"artefact": str(tmp_path / "none")},
        {**valid["policy"], "canary": {"artefact": str(tmp_path / "none"), "share": 0.1}},
        {**valid["policy"], "shadow": {"artefact": str(tmp_path / "none"), "share": 0.1}},
    ):
        with pytest.raises(ArtefactError, match="no manifest"):
            load(tmp_path, {**valid, "policy": policy})


def test_a_policy_is_read_from_a_bucket(tmp_path: Path, valid: dict[str, Any], s3_bucket: str) -> None:
    place = f"{s3_bucket}/policies/3"
    remote = Folder.at(place)
    for name in ("weights.npz", "manifest.json"):
        remote.write(name, (tmp_path / "policy" / name).read_bytes())
    policies = load(tmp_path, {**valid, "policy": {"artefact": place}})
    assert policies.current.version == random_artefact(trio()).version
    with pytest.raises(ArtefactError, match=f"{place}-4/weights.npz: cannot be read"):
        fetch_artefact(f"{place}-4")


def test_the_repositorys_example_names_the_bundled_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    check_upstreams(load_config(Path("serve_configs/local_upstreams.yaml")), trio())
