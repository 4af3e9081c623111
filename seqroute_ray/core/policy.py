"""The routing policy: Q-values by a numpy forward pass, the lambda rule, and the artefact folder it lives in.

An artefact is `manifest.json` (format, state layout, embedder, catalog with prices, configs, data fingerprint) and
`weights.npz`: the only contract between training and serving. It loads with numpy alone.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import ArtefactError
from seqroute_ray.core.estimator import OutcomeEstimator
from seqroute_ray.core.mdp import StateLayout

FORMAT_VERSION = 1
MANIFEST, WEIGHTS = "manifest.json", "weights.npz"


@dataclass(frozen=True)
class QNetwork:
    """A ReLU multi-layer perceptron; Q-values are in units of quality."""

    layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]  # (weight [in, out], bias [out]), first to last

    def q_values(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, state_dim] -> [N, K]."""
        hidden = state
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0.0)
        weight, bias = self.layers[-1]
        return hidden @ weight + bias


def lambda_greedy(
    q_values: NDArray[np.floating],
    cost_usd: NDArray[np.floating],
    allowed: BoolArray,
    lambda_per_usd: FloatArray | float,
) -> IntArray:
    """argmax over allowed a of Q(s, a) - lambda * c(s, a); all arrays [N, K], lambda a number or [N]."""
    price = np.asarray(lambda_per_usd)[..., None] * cost_usd
    return np.asarray(np.argmax(np.where(allowed, q_values - price, -np.inf), axis=1))


@dataclass(frozen=True, kw_only=True)
class PolicyArtefact:
    """Everything that serving needs to route."""

    catalog: Catalog
    embedder: str
    layout: StateLayout
    estimator: OutcomeEstimator
    network: QNetwork
    configs: dict[str, Any] = field(default_factory=dict)  # the resolved configs that made it
    data_fingerprint: str = ""  # of the sessions it learned from

    @property
    def version(self) -> str:
        """Short hash of weights and catalog: what decision records name."""
        digest = hashlib.sha256(self.catalog.fingerprint.encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    def _arrays(self) -> dict[str, NDArray[np.float32]]:
        arrays = {f"estimator.{name}": value for name, value in self.estimator.arrays().items()}
        for i, (weight, bias) in enumerate(self.network.layers):
            arrays |= {f"network.{i}.weight": weight, f"network.{i}.bias": bias}
        return arrays

    def save(self, folder: Path) -> None:
        """Write the folder; the manifest comes last, so a folder without one is unfinished."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        np.savez(folder / WEIGHTS, **self._arrays())  # type: ignore[arg-type]  # numpy's stub types **kwds as allow_pickle
        manifest = {
            "format_version": FORMAT_VERSION,
            "version": self.version,
            "embedder": self.embedder,
            "catalog": self.catalog.to_json(),
            "catalog_fingerprint": self.catalog.fingerprint,
            "layout": self.layout.to_json(),
            "num_layers": len(self.network.layers),
            "configs": self.configs,
            "data_fingerprint": self.data_fingerprint,
        }
        temporary = folder / (MANIFEST + ".tmp")
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
        temporary.replace(folder / MANIFEST)

    @classmethod
    def load(cls, folder: Path, expect: Catalog | None = None) -> "PolicyArtefact":
        """Read a folder. Raises ArtefactError on a wrong version, dimension or catalog (`expect`, where given)."""
        manifest = _read_manifest(folder)
        try:
            with np.load(folder / WEIGHTS, allow_pickle=False) as archive:
                arrays = dict(archive)
            layers = [
                (arrays[f"network.{i}.weight"], arrays[f"network.{i}.bias"]) for i in range(manifest["num_layers"])
            ]
            artefact = cls(
                catalog=Catalog.from_json(manifest["catalog"]),
                embedder=manifest["embedder"],
                layout=StateLayout.from_json(manifest["layout"]),
                estimator=OutcomeEstimator.from_arrays(
                    {name.removeprefix("estimator."): a for name, a in arrays.items() if name.startswith("estimator.")}
                ),
                network=QNetwork(layers),
                configs=manifest["configs"],
                data_fingerprint=manifest["data_fingerprint"],
            )
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise ArtefactError(f"{folder}: the artefact is damaged ({error}); train it again") from error
        artefact._check(folder, manifest, expect)
        return artefact

    def _check(self, folder: Path, manifest: dict[str, Any], expect: Catalog | None) -> None:
        if self.catalog.fingerprint != manifest["catalog_fingerprint"]:
            raise ArtefactError(f"{folder}: the catalog was edited after training (fingerprint differs); train again")
        if expect is not None and expect.fingerprint != self.catalog.fingerprint:
            raise ArtefactError(
                f"{folder}: trained for the catalog {', '.join(self.catalog.names)}, asked to route over "
                f"{', '.join(expect.names)} or at other prices; train again for that pool"
            )
        num_models, width_in = len(self.catalog), self.network.layers[0][0].shape[0]
        width_out = self.network.layers[-1][0].shape[1]
        if (width_in, width_out, self.layout.num_models) != (self.layout.state_dim, num_models, num_models):
            raise ArtefactError(
                f"{folder}: the network maps {width_in} -> {width_out} but the layout says {self.layout.state_dim} -> "
                f"{num_models}; the folder mixes two artefacts"
            )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtefactError(f"{folder}: no {MANIFEST} here; make an artefact with `seqroute train`")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ArtefactError(f"{path}: not JSON: {error}") from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtefactError(
            f"{folder}: artefact format {manifest.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "train again"
        )
    return manifest
