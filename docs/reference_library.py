"""What docs/reference.md says of classes and functions, read off their source: nothing is imported, nothing loaded."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "seqroute_ray"
# What the commands call, and what other programs may: module and names below the package.
LIBRARY: dict[str, dict[str, tuple[str, ...]]] = {
    "Data": {
        "core.catalog": ("ModelSpec", "Catalog"),
        "core.sessions": ("Sessions", "read_sessions", "write_sessions"),
        "core.dataset": ("read_header", "read_dataset", "Dataset"),
        "data.sample": ("write_sample", "sample_logs"),
        "data.catalogs": ("load_catalog",),
        "data.bundled": ("load_outcomes", "Outcomes"),
        "data.importer": ("import_logs", "ImportReport"),
        "data.relabel": ("relabel_sessions", "RelabelReport"),
        "data.inspect": ("inspect_dataset",),
        "core.embedding": ("Embedder", "load_embedder"),
        "core.hbr": ("relabel", "Transitions"),
    },
    "Policies": {
        "core.policy": ("PolicyArtefact", "QNetwork", "RiskPrices", "lambda_greedy"),
        "core.estimator": ("OutcomeEstimator", "Estimates"),
        "core.fitting": ("observe", "fit_estimator"),
        "core.compiled_policy": ("CompiledPolicy",),
        "core.pool_change": ("add_model", "remove_model"),
        "data.change_pool": ("add_model_to_policy", "remove_model_from_policy"),
        "core.registry": ("Registry", "Card", "Pointers"),
    },
    "Training": {
        "training.rllib": ("DiscreteCQLConfig", "DiscreteCQL"),
        "training.train": ("train", "Trained"),
        "training.tune": ("tune", "Tuned"),
    },
    "Evaluation": {
        "evaluation.replay": ("ReplayData", "Policy", "replay", "ReplayResult"),
        "evaluation.calibrate": ("calibrate",),
        "evaluation.evaluate": ("evaluate",),
        "evaluation.ope_report": ("evaluate_ope",),
        "evaluation.ope_log": ("StochasticPolicy", "Exploring", "follow", "target_probabilities"),
        "evaluation.ope": ("OffPolicy", "Estimate", "Refusal"),
        "evaluation.aiq": ("aiq",),
        "retraining.rounds": ("retrain",),
    },
    "Serving": {
        "serving.config": ("load_config",),
        "serving.api": ("make_api",),
        "serving.app": ("build_app",),
        "serving.serve": ("running_server", "serve_forever"),
        "serving.replay_upstream": ("running_replay_upstream",),
        "serving.decision_log": ("export_decisions",),
        "serving.ledgers.factory": ("open_ledger",),
        "core.ledger": ("Ledger",),
    },
    "Errors": {
        "core.errors": (
            "SeqRouteError",
            "ConfigError",
            "DataError",
            "StoppedError",
            "UnknownModelError",
            "ArtefactError",
            "BudgetExhaustedError",
            "NoModelError",
            "LedgerError",
            "UnknownSessionError",
            "LedgerUnavailable",
        ),
    },
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Setting(NamedTuple):
    """A field of a pydantic model."""

    name: str
    type: str
    default: str  # empty: required
    rules: str
    help: str


def entries() -> Iterator[str]:
    """Lines of Markdown: a heading a part, an item a name."""
    for part, modules in LIBRARY.items():
        yield f"### {part}\n"
        for module, names in modules.items():
            for name in names:
                yield from _entry(module, name)
        yield ""


def _entry(module: str, name: str) -> Iterator[str]:
    node = _find(module, name)
    if isinstance(node, Function):
        yield f"- `{module}.{_signature(node)}`: {_doc(node)}"
        return
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    fields = ", ".join(_source(field) for field in _fields(node))
    yield f"- `{module}.{name}({fields or bases})`: {_doc(node)}"
    for method in node.body:
        if isinstance(method, Function) and not method.name.startswith("_"):
            yield f"  - `.{_signature(method)}`" + (f": {_doc(method)}" if ast.get_docstring(method) else "")


def settings(module: str, name: str) -> tuple[str, list[Setting]]:
    """Docstring and fields of a pydantic model, with the comments beside or above them."""
    node = _find(module, name)
    if not isinstance(node, ast.ClassDef):
        raise TypeError(f"{module}.{name}: settings are the fields of a class")
    return _doc(node), [_setting(field, module) for field in _fields(node)]


def _setting(field: ast.AnnAssign, module: str) -> Setting:
    value, rules = _resolved(field.value, module), ""
    default = "" if value is None else ast.unparse(value)
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        given = {str(keyword.arg): ast.unparse(keyword.value) for keyword in value.keywords}
        default = given.get("default", "")
        rules = ", ".join(f"{sign} {given[name]}" for name, sign in _RULES.items() if name in given)
    help_ = _comment(field, _text(module).splitlines())
    return Setting(ast.unparse(field.target), _type(field.annotation, module), default, rules, help_)


def _type(annotation: ast.expr, module: str) -> str:
    """Without what an Annotated adds."""
    resolved = _resolved(annotation, module)
    if not (isinstance(resolved, ast.Subscript) and ast.unparse(resolved.value) == "Annotated"):
        return ast.unparse(annotation)
    kind = resolved.slice.elts[0] if isinstance(resolved.slice, ast.Tuple) else resolved.slice
    return ast.unparse(kind)


_RULES = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "at least"}


def _resolved(value: ast.expr | None, module: str) -> ast.expr | None:
    """What a name of the module that several fields share stands for."""
    if isinstance(value, ast.Name):
        for node in _tree(module).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == value.id:
                return node.value
    return value


def _comment(field: ast.AnnAssign, lines: list[str]) -> str:
    """Beside the field's last line, or the lines above it."""
    _, hash_, beside = lines[(field.end_lineno or field.lineno) - 1].partition("  # ")
    if hash_:
        return beside
    above = list[str]()
    for line in reversed(lines[: field.lineno - 1]):
        if not line.strip().startswith("# "):
            break
        above.insert(0, line.strip().removeprefix("# "))
    return " ".join(above)


@functools.cache
def _text(module: str) -> str:
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text()


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_text(module))


def _find(module: str, name: str) -> ast.ClassDef | Function:
    """Raises KeyError when the module has no such class or function."""
    named = {node.name: node for node in _tree(module).body if isinstance(node, ast.ClassDef | Function)}
    return named[name]


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [field for field in node.body if isinstance(field, ast.AnnAssign)]


def _source(field: ast.AnnAssign) -> str:
    default = "" if field.value is None else f" = {ast.unparse(field.value)}"
    return f"{ast.unparse(field.target)}: {ast.unparse(field.annotation)}{default}"


def _signature(node: Function) -> str:
    returns = f" -> {_unquoted(node.returns)}" if node.returns else ""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if decorators & {"property", "cached_property"}:
        return f"{node.name}{returns}"
    is_async = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    arguments = ast.unparse(node.args)
    for implicit in ("self", "cls"):
        arguments = arguments.removeprefix(implicit).removeprefix(", ") if _begins(arguments, implicit) else arguments
    return f"{is_async}{node.name}({arguments}){returns}"


def _begins(arguments: str, name: str) -> bool:
    return arguments == name or arguments.startswith(f"{name}, ")


def _unquoted(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _doc(node: ast.ClassDef | Function) -> str:
    """The first paragraph, in one line. Raises ValueError where there is none."""
    doc = ast.get_docstring(node)
    if not doc:
        raise ValueError(f"{node.name}: a public name needs a docstring")
    return " ".join(doc.partition("\n\n")[0].split())
