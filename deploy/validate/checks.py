"""All checks, on one repository."""

from collections.abc import Callable
from pathlib import Path

from deploy.validate.cluster import check_cluster
from deploy.validate.dockerfile import Dockerfile, check_dockerfile
from deploy.validate.docs import Docs, check_docs
from deploy.validate.kuberay import check_kuberay
from deploy.validate.pins import Pins
from deploy.validate.problems import BrokenFileError, Problem, Problems
from deploy.validate.serve_configs import check_serve_configs


def validate(root: Path) -> list[Problem]:
    """Every problem, file by file; [] when all is well."""
    docs, dockerfile = Docs(root), Dockerfile(root)
    try:
        pins = Pins(root, tuple(dockerfile.stages))
    except BrokenFileError as error:
        return [error.problem]
    checks: list[Callable[[], Problems]] = [
        lambda: check_cluster(root, pins),
        lambda: check_dockerfile(root, dockerfile, pins),
        lambda: check_kuberay(root, pins, dockerfile, docs),
        lambda: check_serve_configs(root, docs),
        lambda: check_docs(root, pins, docs),
    ]
    return [problem for check in checks for problem in _found(check)]


def _found(check: Callable[[], Problems]) -> list[Problem]:
    try:
        return list(check())
    except BrokenFileError as error:
        return [error.problem]
