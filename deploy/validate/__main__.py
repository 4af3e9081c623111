"""`python -m deploy.validate`: one line a problem on stdout, FILE:PATH: value, rule, way out; exit code 1."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig:
    """Check what the platform team applies, offline."""

    root: Path = Path()  # of the repository
    run_docker_commands: bool = False  # also run the Dockerfile's pip and python commands, in environments of their own


def main(config: ValidateConfig) -> int:
    """The exit code."""
    from deploy.validate.checks import validate  # loads Ray: after --help

    problems = validate(config.root)
    if config.run_docker_commands and not problems:
        from deploy.validate.docker_run import run_stages

        problems = run_stages(config.root)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ValidateConfig, prog="python -m deploy.validate", description=__doc__)))
