"""docs/formats.md against what the code writes: every column and field, in its order, with its type."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqroute_ray.core import dataset
from seqroute_ray.core.catalog import ModelSpec
from seqroute_ray.core.log_schema import LOG_SCHEMA, OUTCOME_TYPE
from seqroute_ray.core.registry import Card, Pointers
from seqroute_ray.core.sessions import to_table, write_sessions
from seqroute_ray.data.importing.bad_lines import BadLine, quarantine_lines
from seqroute_ray.data.judgements import SCHEMA as JUDGEMENT_SCHEMA
from seqroute_ray.evaluation.config import EvaluateConfig
from seqroute_ray.evaluation.evaluate import evaluate
from seqroute_ray.serving.decision_log import SCHEMA as EXPORT_SCHEMA

from .pages import ROOT
from .support import make_artefact, make_risk, make_sessions, make_turns

PAGE = (ROOT / "docs/formats.md").read_text()


def table(heading: str) -> dict[str, list[str]]:
    """The cells behind the first one of each row of the table below a heading."""
    below = re.split(rf"^#+ {re.escape(heading)}$", PAGE, maxsplit=1, flags=re.MULTILINE)[1]
    rows = [line.strip("|").split("|") for line in below.partition("\n#")[0].splitlines() if line.startswith("| `")]
    return {first.strip(" `"): [cell.strip() for cell in others] for first, *others in rows}


def columns(schema: pa.Schema) -> dict[str, str]:
    return {field.name: type_name(field.type) for field in schema}


def type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"list of {type_name(kind.value_type)}"
    if pa.types.is_fixed_size_binary(kind):
        return "binary"
    return "struct" if pa.types.is_struct(kind) else str(kind)


def turns_schema() -> pa.Schema:
    turns = make_turns(3)
    content = dataset.encode_turns(np.zeros((3, 4), np.float16), turns, np.zeros(3, np.int8))
    return pq.read_schema(pa.BufferReader(content))


SCHEMAS = {
    "Logs": LOG_SCHEMA,
    "Judgements": JUDGEMENT_SCHEMA,
    "Session file": to_table(make_sessions([2, 3])).schema,
    "turns": turns_schema(),
    "transitions": dataset.TRANSITION_SCHEMA,
    "Ledger export": EXPORT_SCHEMA,
}


@pytest.mark.parametrize("heading", SCHEMAS)
def test_a_table_has_the_columns_and_types_of_its_schema(heading: str) -> None:
    assert {name: cells[0] for name, cells in table(heading).items()} == columns(SCHEMAS[heading])


def test_an_outcome_has_its_fields() -> None:
    assert re.findall(r"`(\w+)`", table("Logs")["outcomes"][1]) == [field.name for field in OUTCOME_TYPE]


FIELDS = {
    "Catalog": [field.name for field in fields(ModelSpec)],
    "Quarantine file": list(json.loads(quarantine_lines([BadLine(0, 0, "f", 1, "r", "s", 0)]))),
    "manifest.json of a dataset": ["format_version", *dataset.MANIFEST_FIELDS],
    "card.json": [field.name for field in fields(Card)],
    "pointers.json": [field.name for field in fields(Pointers)],
}


@pytest.mark.parametrize("heading", FIELDS)
def test_a_table_has_the_fields_of_its_file(heading: str) -> None:
    assert list(table(heading)) == FIELDS[heading]


def test_the_format_versions_are_the_present_ones(tmp_path: Path) -> None:
    make_artefact().save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert table("manifest.json of a policy")["format_version"] == [str(manifest["format_version"])]
    assert table("manifest.json of a dataset")["format_version"] == [str(dataset.FORMAT_VERSION)]


def test_the_tables_of_a_policy_have_all_that_is_in_its_folder(tmp_path: Path) -> None:
    artefact = make_artefact()
    replace(artefact, estimator=replace(artefact.estimator, risk=make_risk())).save(tmp_path)
    assert list(table("manifest.json of a policy")) == list(json.loads((tmp_path / "manifest.json").read_text()))
    with np.load(tmp_path / "weights.npz") as arrays:
        names = {name for name in arrays if not re.fullmatch(r"network\.(quality|bankruptcy)\.\d\.(weight|bias)", name)}
    assert set(table("weights.npz")) == names


def test_the_tables_of_the_report_have_its_fields(tmp_path: Path) -> None:
    make_artefact().save(tmp_path / "policy")
    write_sessions(replace(make_sessions([3, 4, 3]), part=np.full(3, "test")), tmp_path / "sessions.parquet")
    report = evaluate(
        EvaluateConfig(
            policy=tmp_path / "policy",
            sessions=tmp_path / "sessions.parquet",
            out=tmp_path / "report",
            part="test",
            budgets=(1.0,),
            num_replicates=100,
        )
    )
    assert list(table("report.json")) == list(report)
    assert list(table("rows")) == list(report["rows"][0])
