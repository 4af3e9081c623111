"""The import rules of docs/design.md, read off the source; and what importing the package loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "seqroute_ray"
LAYERS = ("core", "data", "training", "evaluation", "serving", "retraining")
# What each layer may import of the project, and which heavy libraries.
MAY_IMPORT = {
    "core": {"core"},
    "data": {"core", "data"},
    "training": {"core", "training"},
    "evaluation": {"core", "evaluation"},
    "serving": {"core", "serving", "ray_session"},
    "retraining": {"core", "data", "training", "evaluation", "serving", "retraining", "stages"},
}
HEAVY = {
    "core": set(),
    "data": {"ray"},
    "training": {"ray", "torch", "gymnasium"},
    "evaluation": set(),
    "serving": {"ray"},
    "retraining": set(),
}
# The stand-in for the providers answers with recorded outcomes; nothing else in serving may know of them.
EXCEPTIONS = {("serving/replay_upstream.py", "data")}


def imports_of(path: Path) -> set[str]:
    """Full names of all imported modules, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def modules() -> list[tuple[str, Path]]:
    return [(layer, path) for layer in LAYERS for path in sorted((PACKAGE / layer).rglob("*.py"))]


@pytest.mark.parametrize(("layer", "path"), modules(), ids=lambda value: getattr(value, "name", value))
def test_a_layer_imports_only_what_it_may(layer: str, path: Path) -> None:
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "seqroute_ray" and len(parts) > 1:
            mine = parts[1] == "__version__" or parts[1] in MAY_IMPORT[layer]
            allowed = mine or (path.relative_to(PACKAGE).as_posix(), parts[1]) in EXCEPTIONS
            assert allowed, f"{path.name} imports {name}"
        if parts[0] in ("ray", "torch", "gymnasium"):
            assert parts[0] in HEAVY[layer], f"{path.name} imports {name}"
        assert parts[0] != "jobs", f"{path.name} imports a job"


def test_every_layer_has_modules() -> None:
    assert {layer for layer, _ in modules()} == set(LAYERS)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("seqroute_ray", ("ray", "torch", "numpy")),
        ("seqroute_ray.core.policy", ("ray", "torch", "matplotlib")),
        ("seqroute_ray.cli", ("ray", "torch", "matplotlib", "redis", "sqlite3")),
        ("seqroute_ray.serving.turns", ("torch", "matplotlib", "seqroute_ray.training", "seqroute_ray.evaluation")),
    ],
)
def test_importing_loads_no_more_than_it_needs(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
