"""Names that a pydantic model ignores: Serve's schema lets wrong ones pass, and its default then holds."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from deploy.validate.problems import Problem, Problems, near


def unknown_fields(file: str, model: type[BaseModel], raw: Any, above: str = "") -> Problems:
    """Every key of the raw mapping, and of those in it, that no field of the model reads."""
    if not isinstance(raw, dict):
        return  # the schema says so
    for key, value in raw.items():
        where = f"{above}{key}"
        if key not in model.model_fields:
            yield Problem(file, where, f"{key}: Serve reads no such field; {near(str(key), model.model_fields)}")
            continue
        nested = list(_models(model.model_fields[key].annotation))
        if len(nested) != 1:
            continue
        items = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, item in items:
            yield from unknown_fields(file, nested[0], item, f"{where}." if index is None else f"{where}.{index}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type such as list[Model] | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
