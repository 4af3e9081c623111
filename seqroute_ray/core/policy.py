"""The routing policy: Q-values by a numpy forward pass, the lambda rule, and the artefact folder it lives in.

Q is kept in its two parts, quality still to come and chance of bankruptcy, so that both knobs act at decision time:
    argmax_a  quality(s, a) - penalty * bankruptcy(s, a) - lambda * c(s, a)
lambda prices money (quality per USD); the penalty prices a bankrupt session (in turns of full quality).

An artefact is `manifest.json` (format, state layout, embedder, catalog with prices, configs, data fingerprint) and
`weights.npz`: the only contract between training and serving. It loads with numpy alone.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import ArtefactError, ConfigError
from seqroute_ray.core.estimator import OutcomeEstimator
from seqroute_ray.core.mdp import NUM_AFTER, StateLayout

FORMAT_VERSION = 2
MANIFEST, WEIGHTS = "manifest.json", "weights.npz"
# What reading a cut-off, edited or foreign file raises, in numpy, json and our own constructors.
DAMAGE = (OSError, EOFError, BadZipFile, KeyError, IndexError, TypeError, ValueError, AttributeError, ConfigError)


@dataclass(frozen=True)
class Values:
    """What a network says of N states, each [N, K]."""

    quality: NDArray[np.float32]  # expected sum of quality from this turn on
    bankruptcy: NDArray[np.float32]  # chance that the session goes bankrupt, in [0, 1]

    def q_values(self, penalty: FloatArray | float) -> NDArray[np.float32]:
        """[N, K] in units of quality; penalty: a number or [N]."""
        price = np.asarray(penalty, dtype=np.float32)[..., None]
        return np.asarray(self.quality - price * self.bankruptcy)


@dataclass(frozen=True)
class QNetwork:
    """One ReLU multi-layer perceptron, applied to each action: (context, what the action leaves) -> 2 numbers.

    They are the quality still to come beyond this turn's estimate, and the logit of bankruptcy. The estimate itself is
    added outside with one weight, so learning cannot blur it; and no weight belongs to one model: the pool may change.
    """

    layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]  # (weight [in, out], bias [out]), first to last
    num_context: int  # of a state's entries; the first layer's weight has the context's rows first
    estimate_weight: float = 1.0  # about 1 in a policy that plans

    def __post_init__(self) -> None:
        if len(self.layers) < 2:
            raise ValueError("a network needs at least one hidden layer")

    def values(self, state: NDArray[np.float32]) -> Values:
        """[N, state_dim] (mdp.StateLayout) -> both parts of Q."""
        (weight, bias), *rest = self.layers
        num_own = len(weight) - self.num_context
        context, own = state[:, : self.num_context], state[:, self.num_context :]
        num_models = own.shape[1] // (1 + num_own)
        estimate, after = own[:, :num_models], own[:, num_models:].reshape(len(state), num_models, num_own)
        shared = context @ weight[: self.num_context] + bias
        hidden = np.maximum(shared[:, None, :] + after @ weight[self.num_context :], 0.0)
        for weight, bias in rest[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0.0)
        weight, bias = rest[-1]
        output = hidden @ weight + bias
        return Values(
            quality=np.float32(self.estimate_weight) * estimate + output[..., 0],
            bankruptcy=np.asarray(1.0 / (1.0 + np.exp(-np.clip(output[..., 1], -30, 30)))),
        )


@dataclass(frozen=True)
class RiskPrices:
    """The bankruptcy penalty by budget: chosen on the tune part, see evaluation.calibrate."""

    budgets: tuple[float, ...]  # multiples of the reference cost, rising
    penalties: tuple[float, ...]  # in turns of full quality

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise((0.0, *self.budgets)))
        positive = all(penalty > 0 for penalty in self.penalties)
        if not (self.budgets and rising and positive and len(self.budgets) == len(self.penalties)):
            raise ArtefactError(
                f"risk prices need one penalty > 0 for each budget, rising from 0; got {self.budgets}, {self.penalties}"
            )

    def penalty(self, budget: FloatArray | float) -> FloatArray:
        """At budgets in multiples of the reference cost: log-interpolated, constant beyond the ends."""
        place = np.log(np.maximum(budget, 1e-9))
        return np.asarray(np.exp(np.interp(place, np.log(self.budgets), np.log(self.penalties))))


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
    risk: RiskPrices
    configs: dict[str, Any] = field(default_factory=dict)  # the resolved configs that made it
    data_fingerprint: str = ""  # of the sessions it learned from

    @property
    def version(self) -> str:
        """Short hash of weights, risk prices and catalog: what decision records name."""
        digest = hashlib.sha256(f"{self.catalog.fingerprint} {self.risk}".encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    def penalty(self, budget_usd: float) -> float:
        """The price of a bankruptcy for a session of this budget, in turns of full quality."""
        return float(self.risk.penalty(budget_usd / self.layout.reference_cost_usd))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {
            f"estimator.{name}": value for name, value in self.estimator.arrays().items()
        }
        for i, (weight, bias) in enumerate(self.network.layers):
            arrays |= {f"network.{i}.weight": weight, f"network.{i}.bias": bias}
        arrays["network.estimate_weight"] = np.array(self.network.estimate_weight, dtype=np.float32)
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
            "risk": asdict(self.risk),
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
                network=QNetwork(
                    layers,
                    StateLayout.from_json(manifest["layout"]).num_context,
                    float(arrays["network.estimate_weight"]),
                ),
                risk=RiskPrices(*(tuple(manifest["risk"][name]) for name in ("budgets", "penalties"))),
                configs=manifest["configs"],
                data_fingerprint=manifest["data_fingerprint"],
            )
        except DAMAGE as error:
            raise ArtefactError(f"{folder}: the artefact is damaged ({error!r}); train it again") from error
        artefact._check(folder, manifest, expect)
        return artefact

    def _check(self, folder: Path, manifest: dict[str, Any], expect: Catalog | None) -> None:
        if self.catalog.fingerprint != manifest.get("catalog_fingerprint"):
            raise ArtefactError(f"{folder}: the catalog was edited after training (fingerprint differs); train again")
        if expect is not None and expect.fingerprint != self.catalog.fingerprint:
            raise ArtefactError(
                f"{folder}: trained for the catalog {', '.join(self.catalog.names)}, asked to route over "
                f"{', '.join(expect.names)} or at other prices; train again for that pool"
            )
        num_models, widths = (
            len(self.catalog),
            (self.network.layers[0][0].shape[0], self.network.layers[-1][0].shape[1]),
        )
        expected = (self.layout.num_context + NUM_AFTER, 2)
        if self.estimator.num_models != num_models:
            raise ArtefactError(
                f"{folder}: an estimator of {self.estimator.num_models} models in a pool of {num_models}; train again"
            )
        if widths != expected or self.layout.num_models != num_models:
            raise ArtefactError(
                f"{folder}: the network maps {widths[0]} -> {widths[1]} for {self.layout.num_models} models, expected "
                f"{expected[0]} -> {expected[1]} for {num_models}; the folder mixes two artefacts"
            )
        if self.estimator.features.summary_width != self.layout.summary_width:
            raise ArtefactError(
                f"{folder}: the estimator summarises a query in {self.estimator.features.summary_width} numbers, the "
                f"layout has {self.layout.summary_width}; the folder mixes two artefacts"
            )
        if self.version != manifest.get("version"):
            raise ArtefactError(f"{folder}: {WEIGHTS} is not the one that {MANIFEST} was written for; train again")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtefactError(f"{folder}: no {MANIFEST} here; make an artefact with `seqroute train`")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not even UTF-8
        raise ArtefactError(f"{path}: not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise ArtefactError(f"{path}: must hold a JSON object, got {type(manifest).__name__}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtefactError(
            f"{folder}: artefact format {manifest.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "train again"
        )
    return manifest
