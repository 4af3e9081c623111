"""Format `seqroute`: JSON lines or Parquet in the log schema (`core/log_schema.py`), one row a turn."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from seqroute_ray.core.log_schema import LOG_SCHEMA, fit_types
from seqroute_ray.core.storage import Location, suffix_of
from seqroute_ray.data.formats.records import ROWS_PER_BATCH, json_lines, open_parquet
from seqroute_ray.data.formats.rows import LogBlock, log_blocks


def read(path: Location) -> Iterator[LogBlock]:
    """Read by suffix. Raises DataError when a column is of a wrong type or it is no such file."""
    if suffix_of(path) == ".parquet":
        return parquet_blocks(path, LOG_SCHEMA)
    return log_blocks(path, json_lines(path))


def parquet_blocks(path: Location, schema: pa.Schema) -> Iterator[LogBlock]:
    """The columns of the schema, null where a Parquet file has none; rows are numbered from 1."""
    with open_parquet(path) as file:
        names, num_rows = [name for name in schema.names if name in file.schema_arrow.names], 0
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=names or file.schema_arrow.names):
            table = fit_types(pa.Table.from_batches([batch]), str(path), schema)
            yield LogBlock(table, np.arange(num_rows, num_rows + batch.num_rows) + 1)
            num_rows += batch.num_rows
