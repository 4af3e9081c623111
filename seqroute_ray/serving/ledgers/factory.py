"""The ledger at a place: a Redis URL, or the path of an SQLite file."""

import asyncio
import os
from pathlib import Path

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.ledger import Ledger
from seqroute_ray.serving.ledgers.sqlite import SqliteLedger

REDIS_SCHEMES = ("redis://", "rediss://")


def is_redis(place: str | Path) -> bool:
    """True for a URL of Redis; anything else is a path on this machine."""
    return str(place).startswith(REDIS_SCHEMES)


async def open_ledger(place: str | Path, redis_password_env: str | None = None) -> Ledger:
    """An open ledger, to be closed by the caller. redis_password_env: the environment variable with Redis' password.

    Raises ConfigError on a place that cannot hold one, LedgerUnavailable when it does not answer.
    """
    if not is_redis(place):
        if "://" in str(place):
            raise ConfigError(f"ledger: {_scheme(place)} is not supported; name a path, redis:// or rediss://")
        return SqliteLedger(Path(place))
    from seqroute_ray.serving.ledgers.redis import RedisLedger  # its client is loaded only where it is used

    return await RedisLedger.connect(str(place), _password(redis_password_env))


def check_ledger(place: str | Path, redis_password_env: str | None = None) -> None:
    """Open it and close it, before a server starts. Raises ConfigError, LedgerUnavailable."""

    async def look() -> None:
        await (await open_ledger(place, redis_password_env)).close()

    asyncio.run(look())


def _scheme(place: str | Path) -> str:
    """A URL's beginning: the rest may hold a password."""
    return str(place).split("://")[0] + "://"


def _password(variable: str | None) -> str | None:
    if variable is None:
        return None
    password = os.environ.get(variable)
    if not password:
        raise ConfigError(f"ledger: the environment variable {variable} is not set; export Redis' password in it")
    return password
