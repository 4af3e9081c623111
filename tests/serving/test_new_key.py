import pytest
import yaml

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.keys import KeyConfig, Keyring
from seqroute_ray.serving.new_key import NewKeyConfig, new_key


def test_a_new_key_opens_a_server_with_the_printed_settings(capsys: pytest.CaptureFixture[str]) -> None:
    made = new_key(NewKeyConfig(id="team-a", scopes=("route", "admin"), requests_per_minute=60))
    printed = capsys.readouterr().err
    assert made["key"] not in printed
    keys = [KeyConfig.model_validate(entry) for entry in yaml.safe_load(printed)["keys"]]
    caller = Keyring(keys).authenticate({"authorization": f"Bearer {made['key']}"})
    assert (caller.id, caller.scopes, keys[0].requests_per_minute) == ("team-a", ("route", "admin"), 60)


def test_keys_are_random_and_long() -> None:
    keys = {new_key(NewKeyConfig(id="a"))["key"] for _ in range(3)}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {len("sr-") + 43}  # 256 bits in base64


def test_a_key_that_the_settings_would_refuse_is_not_made() -> None:
    with pytest.raises(ConfigError, match=r"^id: String should match pattern"):
        new_key(NewKeyConfig(id="team a"))
    with pytest.raises(ConfigError, match=r"^requests_per_minute: .* got 0$"):
        new_key(NewKeyConfig(id="a", requests_per_minute=0))
