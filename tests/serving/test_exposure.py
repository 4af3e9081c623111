"""Without API keys nobody but this machine may reach the server."""

from pathlib import Path

import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.config import load_config
from seqroute_ray.serving.exposure import check_exposure, is_loopback
from seqroute_ray.serving.haproxy import HAPROXY_VARIABLE

from .service_support import keys_for
from .support import random_artefact, settings, trio, write_settings

URL = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HAPROXY_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_only_loopback_is_open_without_keys(tmp_path: Path, host: str, loopback: bool) -> None:
    fields = settings(tmp_path, random_artefact(trio()), URL)
    open_to_all = load_config(write_settings(tmp_path, fields))
    with_keys = load_config(write_settings(tmp_path, {**fields, "keys": keys_for("team")}))
    assert is_loopback(host) == loopback
    check_exposure(with_keys, host)
    if loopback:
        check_exposure(open_to_all, host)
    else:
        with pytest.raises(ConfigError, match="no API keys are configured; make one with `seqroute new-key`"):
            check_exposure(open_to_all, host)


def test_serves_haproxy_needs_keys_whatever_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = settings(tmp_path, random_artefact(trio()), URL)
    open_to_all = load_config(write_settings(tmp_path, fields))
    with_keys = load_config(write_settings(tmp_path, {**fields, "keys": keys_for("team")}))
    monkeypatch.setenv(HAPROXY_VARIABLE, "1")
    check_exposure(with_keys, "127.0.0.1")
    with pytest.raises(ConfigError, match=f"{HAPROXY_VARIABLE}=1 listens on every interface"):
        check_exposure(open_to_all, "127.0.0.1")
    monkeypatch.setenv(HAPROXY_VARIABLE, "0")
    check_exposure(open_to_all, "127.0.0.1")
