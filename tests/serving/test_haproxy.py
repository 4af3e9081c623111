from pathlib import Path

import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.config import ServingConfig
from seqroute_ray.serving.haproxy import HAPROXY_VARIABLE, HARD_STOP_S, HARD_STOP_VARIABLE, check_hard_stop

from .support import random_artefact, settings, trio


@pytest.fixture
def config(tmp_path: Path) -> ServingConfig:
    fields = settings(tmp_path, random_artefact(trio()), "http://127.0.0.1:9/v1")
    return ServingConfig.model_validate(fields | {"upstream_timeout_s": HARD_STOP_S + 1})


def test_a_haproxy_that_would_cut_streams_is_refused(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HAPROXY_VARIABLE, "1")
    monkeypatch.delenv(HARD_STOP_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=HARD_STOP_VARIABLE):
        check_hard_stop(config)
    check_hard_stop(config.model_copy(update={"upstream_timeout_s": float(HARD_STOP_S)}))


def test_a_haproxy_that_waits_long_enough_is_not(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HAPROXY_VARIABLE, "1")
    monkeypatch.setenv(HARD_STOP_VARIABLE, str(HARD_STOP_S + 1))
    check_hard_stop(config)


def test_without_haproxy_nothing_is_cut(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HAPROXY_VARIABLE, raising=False)
    check_hard_stop(config)
