"""`seqroute new-key`: makes an API key, shows it once, and the lines of settings that let it in."""

import hashlib
import secrets
import sys
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.keys import KeyConfig, Scope

KEY_BYTES, KEY_PREFIX = 32, "sr-"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKeyConfig:
    """A key to make. Each field is a flag of `seqroute new-key`; other settings of a key are edited in the file."""

    id: str  # owner of the key's sessions, such as team-a
    scopes: tuple[Scope, ...] = ("route", "sessions")  # admin: operate the server
    requests_per_minute: int | None = None  # per replica; none: no limit


def new_key(config: NewKeyConfig) -> dict[str, Any]:
    """The key, which is stored nowhere, and its entry in the settings; prints the YAML to paste on stderr.

    Raises ConfigError on an id or a rate that the settings would refuse.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    entry: dict[str, Any] = {
        "id": config.id,
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "scopes": list(config.scopes),
    }
    if config.requests_per_minute is not None:
        entry["requests_per_minute"] = config.requests_per_minute
    try:
        KeyConfig.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}") from error
    print("# The key is shown once. To let it in, add to the server's settings:", file=sys.stderr)
    print(yaml.safe_dump({"keys": [entry]}, sort_keys=False), end="", file=sys.stderr)
    return {"key": key, "entry": entry}
