from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seqroute_ray.data.formats.records import Numbered, csv_records, json_records, parquet_records


def test_an_array_is_known_behind_a_byte_order_mark_and_space(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'\xef\xbb\xbf \n[{"a": 1},\n{"a": 2}]')
    assert list(json_records(path)) == [Numbered(1, {"a": 1}), Numbered(2, {"a": 2})]
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}')
    assert list(json_records(path)) == [Numbered(1, {"a": 1}), Numbered(3, {"a": 2})]


def test_csv_rows_have_the_line_they_begin_at(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n"1\r\n2",\r\n\r\n3,4\r\n')
    assert list(csv_records(path)) == [Numbered(2, {"a": "1\r\n2", "b": None}), Numbered(5, {"a": "3", "b": "4"})]


def test_parquet_columns_may_have_dots_in_their_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"gpt-3.5|cost": [0.5, None], "gpt-3": [1, 2]}), path)
    assert list(parquet_records(path, ["gpt-3.5|cost", "absent"])) == [
        Numbered(1, {"gpt-3.5|cost": 0.5}),
        Numbered(2, {"gpt-3.5|cost": None}),
    ]
