import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.serve import ServeConfig, running_server, serve_forever

from .support import QUESTIONS, Client, free_port, random_artefact, settings, trio, write_settings


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="port must be"):
        ServeConfig(config=Path("x.yaml"), port=port)


BROKEN = [
    ({"default_max_tokens": 0}, "default_max_tokens"),
    ({"policy": {"artefact": "/nowhere"}}, "no manifest"),
    ({"ledger": "http://127.0.0.1:9"}, "http:// is not supported"),
    ({}, "replay_upstream needs one base_url"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_mistakes_surface_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    fields = {**settings(tmp_path, random_artefact(trio()), "https://api.example.com/v1"), **change}
    config = ServeConfig(config=write_settings(tmp_path, fields), replay_upstream=True)
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it now would raise ImportError
    with pytest.raises(Exception, match=message), running_server(config):
        pass


def test_without_ray_too_a_ledger_that_cannot_be_used_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    fields = settings(tmp_path, random_artefact(trio()), "https://api.example.com/v1")
    path = write_settings(tmp_path, fields | {"ledger": "http://127.0.0.1:9"})
    with pytest.raises(ConfigError, match="http:// is not supported"):
        serve_forever(ServeConfig(config=path, server="uvicorn"))


def test_a_server_without_keys_listens_on_loopback_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = settings(tmp_path, random_artefact(trio()), "https://api.example.com/v1")
    config = ServeConfig(config=write_settings(tmp_path, fields), host="0.0.0.0")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"host 0\.0\.0\.0 can be reached from the network"), running_server(config):
        pass


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_ray_serve_routes_a_session_over_http(tmp_path: Path) -> None:
    fields = settings(tmp_path, random_artefact(trio()), f"http://127.0.0.1:{free_port()}/v1")
    config = ServeConfig(config=write_settings(tmp_path, fields), port=free_port(), replay_upstream=True)
    with running_server(config) as base_url:
        client = Client(base_url, {"x-session-id": "s", "x-session-budget-usd": "0.05"})
        replies = [client.chat(question) for question in QUESTIONS[:3]]
        assert [reply.status for reply in replies] == [200, 200, 200], [reply.body for reply in replies]
        session = client.get("/v1/sessions/s").body
        many = client.with_headers(x_session_id="crowd", x_session_budget_usd="0.005")
        crowd = many.chats([QUESTIONS[0]] * 40, max_tokens=20)
        crowd_session = client.get("/v1/sessions/crowd").body
    spent_usd = sum(reply.body["seqroute"]["cost_usd"] for reply in replies)
    assert session["spent_usd"] == pytest.approx(spent_usd, abs=1e-12)
    assert (session["num_turns"], session["reserved_usd"]) == (3, 0)
    assert {reply.status for reply in crowd} <= {200, 402}
    assert crowd_session["num_turns"] == sum(reply.status == 200 for reply in crowd)
    assert 0 < crowd_session["spent_usd"] <= 0.005
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{base_url}/healthz", timeout=2)
