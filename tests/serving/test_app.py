import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.replay_upstream import running_replay_upstream

from .support import QUESTIONS, Client, free_port, random_artefact, settings, trio, write_settings

ROOT = Path(__file__).parents[2]


def test_the_local_serve_config_fits_serves_schema_and_our_deployment(tmp_path: Path) -> None:
    import ray
    from ray.serve.schema import ServeDeploySchema

    from seqroute_ray.serving.app import ServeArgs, build_app

    schema = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve_configs/local.yaml").read_text()))
    (application,) = schema.applications
    assert application.import_path == f"{build_app.__module__}:{build_app.__name__}"
    assert (ROOT / ServeArgs(**application.args).config).is_file()
    assert schema.http_options.host == "127.0.0.1"
    path = write_settings(tmp_path, settings(tmp_path, random_artefact(trio()), "http://127.0.0.1:9/v1"))
    had_ray = ray.is_initialized()
    deployment = build_app(ServeArgs(config=str(path)))._bound_deployment
    assert ray.is_initialized() == had_ray  # looking at what it would listen on starts nothing
    assert [deployment.name] == [each.name for each in application.deployments]
    assert deployment._deployment_config.max_ongoing_requests > 100


def test_arguments_are_validated() -> None:
    from seqroute_ray.serving.app import ServeArgs, build_app

    with pytest.raises(ValidationError):
        ServeArgs.model_validate({"config": "x.yaml", "port": 1})
    with pytest.raises(ConfigError, match="cannot be read"):
        build_app(ServeArgs(config="none.yaml"))


def test_serve_builds_anew_for_another_revision_and_not_for_a_changed_settings_file(tmp_path: Path) -> None:
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve.schema import ServeApplicationSchema

    from seqroute_ray.serving.app import ServeArgs

    path = write_settings(tmp_path, settings(tmp_path, random_artefact(trio()), "http://127.0.0.1:9/v1"))

    def version(**more: str) -> str:
        args = ServeArgs(config=str(path), **more).model_dump()
        return str(get_app_code_version(ServeApplicationSchema(import_path="m:build_app", args=args)))

    before = version()
    path.write_text(path.read_text() + "default_max_tokens: 7\n")
    assert version() == before  # as `serve deploy` sees it: nothing to do
    assert version(revision="2") != before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_client_that_hangs_up_on_a_replica_leaves_no_reservation(tmp_path: Path) -> None:
    from ray import serve

    from seqroute_ray.serving.app import ServeArgs, build_app

    with running_replay_upstream(delay_s=4.0) as upstream_url, ExitStack() as stack:
        path = write_settings(tmp_path, settings(tmp_path, random_artefact(trio()), upstream_url))
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        stack.callback(serve.shutdown)
        serve.run(build_app(ServeArgs(config=str(path))))
        client = Client(f"http://127.0.0.1:{port}", {"x-session-id": "s", "x-session-budget-usd": "0.01"})
        with pytest.raises(TimeoutError):
            client.hang_up(QUESTIONS[0], after_s=2.0)
        during = after = client.get("/v1/sessions/s").body
        deadline_s = time.monotonic() + 30
        while after["reserved_usd"] and time.monotonic() < deadline_s:
            time.sleep(0.1)
            after = client.get("/v1/sessions/s").body
    assert during["reserved_usd"] > 0
    assert (after["reserved_usd"], after["num_turns"]) == (0, 1)
    assert after["spent_usd"] > 0


@pytest.mark.parametrize(
    ("user_config", "message"),
    [
        ({}, "user_config: Value error, name either an artefact or a registry"),
        ({"artefact": "p", "epsilon": 2}, "user_config: epsilon: "),
    ],
)
def test_a_broken_user_config_is_refused(user_config: dict[str, object], message: str) -> None:
    from seqroute_ray.serving.app import policy_settings

    with pytest.raises(ConfigError, match=message):
        policy_settings(user_config)
