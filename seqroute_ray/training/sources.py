"""What a path holds, as a source of batches."""

from collections.abc import Mapping

from seqroute_ray.core.dataset import MANIFEST
from seqroute_ray.core.storage import Folder, Location
from seqroute_ray.training.config import Sampling
from seqroute_ray.training.parquet import ParquetData
from seqroute_ray.training.reader import BatchSource
from seqroute_ray.training.relabeled import RelabeledData, rows_by_stratum
from seqroute_ray.training.stratified import Stratified


def open_source(location: Location, memory_mb: float, columns: Mapping[str, str] | None = None) -> BatchSource:
    """A dataset of `seqroute relabel`, or any Parquet rows; columns: see ParquetData.open. Raises DataError."""
    if Folder.at(location).exists(MANIFEST):
        return RelabeledData.open(location, memory_mb)
    return ParquetData.open(location, memory_mb, columns or {})


def open_dataset(location: Location, sampling: Sampling, memory_mb: float) -> BatchSource:
    """The transitions of a relabeled dataset as the learners draw them. Raises DataError."""
    source = RelabeledData.open(location, memory_mb)
    return source if sampling == "uniform" else Stratified.of_rows(source, rows_by_stratum(location, memory_mb))
