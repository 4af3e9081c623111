"""Format `seqroute`: JSON lines or Parquet in the log schema (`core/log_schema.py`), one row a turn."""

from pathlib import Path

import pyarrow as pa

from seqroute_ray.core.log_schema import LOG_SCHEMA, fit_types
from seqroute_ray.core.logs import Origin
from seqroute_ray.data.formats.records import json_lines, open_parquet, unreadable_parquet
from seqroute_ray.data.formats.rows import LogFile, log_file


def read(path: Path) -> LogFile:
    """Read by suffix. Raises DataError when a column is of a wrong type or it is no such file."""
    if path.suffix == ".parquet":
        return read_parquet(path, LOG_SCHEMA)
    return log_file(path, json_lines(path))


def read_parquet(path: Path, schema: pa.Schema) -> LogFile:
    """The columns of the schema that a Parquet file has."""
    file = open_parquet(path)
    try:
        table = file.read([name for name in schema.names if name in file.schema_arrow.names])
    except (pa.ArrowException, OSError) as error:
        raise unreadable_parquet(path, error) from error
    return LogFile(fit_types(table, str(path), schema), Origin.of_rows(str(path), table.num_rows))
