"""cluster.yaml: who reaches the cluster, and which files leave the machine that runs `ray up`."""

import shlex
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.validate.problems import Problem, Problems

PRIVATE = ("~", "~/.ssh", "~/.aws", "~/.config")  # folders of keys that no node needs
HEAVY = (".git", ".venv", "runs")  # of the repository: gigabytes that no node needs
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the variable's name


def check_access(root: Path, file: str, config: dict[str, Any]) -> Problems:
    """SSH, the token, and the mounts."""
    if not config["auth"].get("ssh_user"):
        yield Problem(file, "auth.ssh_user", "missing: Ray logs in by SSH; write ubuntu, the user of Ray's images")
    mounts = config.get("file_mounts", {})
    yield from _check_token(file, config["docker"].get("run_options", []), mounts)
    yield from _check_mounts(root, file, mounts)
    if "." in mounts.values():
        for missing in sorted(set(HEAVY) - set(map(str, config.get("rsync_exclude", [])))):
            yield Problem(file, "rsync_exclude", f"{missing}: would be copied to every node; add it")


def container_env(run_options: list[str]) -> dict[str, str]:
    """The variables that `docker run` sets."""
    words = [word for option in run_options for word in shlex.split(str(option), comments=True)]
    pairs = [word.removeprefix("--env=") for word in words if word.startswith("--env=")]
    pairs += [after for word, after in pairwise(words) if word in ("--env", "-e")]
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _check_token(file: str, run_options: list[str], mounts: dict[str, str]) -> Problems:
    env, where = container_env(run_options), "docker.run_options"
    for index, option in enumerate(run_options):
        if not isinstance(option, str):
            yield Problem(
                file, f"{where}.{index}", f"{option!r:.60}: must be a text of flags of `docker run`; correct it"
            )
    if env.get("RAY_AUTH_MODE") != "token":
        got = env.get("RAY_AUTH_MODE", "no RAY_AUTH_MODE")
        rule = "without a token everybody who reaches Ray's ports runs code"
        yield Problem(file, where, f"{got}: {rule}; add --env RAY_AUTH_MODE=token")
    path = env.get(TOKEN_PATH, "~/.ray/auth_token")
    if not any(PurePosixPath(path).is_relative_to(mounted) for mounted in mounts):
        yield Problem(file, where, f"{TOKEN_PATH} {path}: lies in no file mount; mount the folder that holds the token")


def _check_mounts(root: Path, file: str, mounts: dict[str, str]) -> Problems:
    for target, source in mounts.items():
        where = f"file_mounts.{target}"
        if not isinstance(source, str):
            yield Problem(file, where, f"{source!r}: must be a path; correct it")
            continue
        if not PurePosixPath(target).is_absolute():
            yield Problem(file, where, f"{target}: a destination must be absolute; write /home/ray/...")
        if source.startswith("~"):
            if source.rstrip("/") in PRIVATE:
                yield Problem(
                    file, where, f"{source}: would copy your own keys to every node; mount one folder of its own"
                )
        elif Path(source).is_absolute():
            yield Problem(
                file, where, f"{source}: exists on one machine only; name a path in the repository or under ~/"
            )
        elif not (root / source).exists():
            yield Problem(
                file, where, f"{source}: no such file or folder in the repository; correct it or remove the mount"
            )
        elif (root / source).is_file():
            yield Problem(file, where, f"{source}: a mounted file does not follow its changes; mount its folder")
        for other in mounts:
            if other != target and PurePosixPath(other).is_relative_to(target):
                yield Problem(
                    file, where, f"{other}: lies in this mount, and one hides the other; place them side by side"
                )
