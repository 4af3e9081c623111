"""The routing policy: Q-values by a numpy forward pass, the lambda rule, and the artefact folder it lives in.

Q is kept in its two parts, quality still to come and chance of bankruptcy, so that both knobs act at decision time:
    argmax_a  quality(s, a) - penalty * bankruptcy(s, a) - lambda * c(s, a)
lambda prices money (quality per USD); the penalty prices a bankrupt session (in turns of full quality).

An artefact is `manifest.json` (format, state layout, embedder, catalog with prices, configs, data fingerprint) and
`weights.npz`: the only contract between training and serving. It loads with numpy alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK, StateLayout
from seqroute_ray.core.ridge import sigmoid

FORMAT_VERSION = 4
HEADS = ("quality", "bankruptcy")  # of a QNetwork
BLOCK_ROWS = 2048  # states times models in one pass: their hidden units stay in a core's cache
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


Layers = Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]  # (weight [in, out], bias [out]), first to last


def rectify(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """ReLU in place; np.maximum with a number takes three times as long."""
    return np.clip(units, 0.0, np.inf, out=units)


@dataclass(frozen=True)
class Perceptron:
    """One ReLU multi-layer perceptron, applied to each action: (context, the action's own entries) -> 1 number.

    Own entries beyond the width of the first layer are not for it.
    """

    layers: Layers  # the first layer's weight has the context's rows first

    def __post_init__(self) -> None:
        if len(self.layers) < 2:
            raise ValueError("a network needs at least one hidden layer")

    @property
    def widths(self) -> tuple[int, int]:
        """Of input and output."""
        return self.layers[0][0].shape[0], self.layers[-1][0].shape[1]

    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """inputs: [M, 1 + C + A], a 1, the context and the own entries -> [M]."""
        (weight, bias), *rest = self.layers
        first = np.concatenate([bias[None], weight])  # the 1 carries the bias: one pass over all hidden units less
        hidden = inputs[:, : len(first)] @ first
        for weight, bias in rest:
            hidden = rectify(hidden) @ weight
            hidden += bias
        return np.asarray(hidden[:, 0])


@dataclass(frozen=True)
class QNetwork:
    """Two perceptrons: the quality still to come beyond this turn's estimate, and the logit of going bankrupt.

    The estimate itself is added outside with one weight, so learning cannot blur it; and no weight belongs to one
    model: the pool may change. What tells of runaway answers is for the bankruptcy alone: quality learns nothing of it.
    """

    quality: Perceptron
    bankruptcy: Perceptron
    num_context: int  # of a state's entries
    estimate_weight: float = 1.0  # about 1 in a policy that plans

    def values(self, state: NDArray[np.float32]) -> Values:
        """[N, state_dim] (mdp.StateLayout) -> both parts of Q."""
        num_context, num_own = self.num_context, self.bankruptcy.widths[0] - self.num_context
        num_models = (state.shape[1] - num_context) // (1 + num_own)
        size = max(1, BLOCK_ROWS // num_models)
        outputs = np.empty((len(HEADS), len(state), num_models), dtype=np.float32)
        for start in range(0, len(state), size):
            inputs = self._inputs(state[start : start + size], num_models, num_own)
            for out, head in zip(outputs, (self.quality, self.bankruptcy), strict=True):
                out[start : start + size] = head.outputs(inputs).reshape(-1, num_models)
        quality, logit = outputs
        return Values(
            quality=np.float32(self.estimate_weight) * state[:, num_context : num_context + num_models] + quality,
            bankruptcy=np.asarray(sigmoid(logit), dtype=np.float32),
        )

    def _inputs(self, state: NDArray[np.float32], num_models: int, num_own: int) -> NDArray[np.float32]:
        """[N * K, 1 + C + A] of Perceptron.outputs."""
        num_states, after_context = len(state), 1 + self.num_context
        inputs = np.empty((num_states, num_models, after_context + num_own), dtype=np.float32)
        inputs[..., 0] = 1
        inputs[..., 1:after_context] = state[:, None, : self.num_context]
        own = state[:, self.num_context + num_models :]
        inputs[..., after_context:] = own.reshape(num_states, num_models, num_own)
        return inputs.reshape(num_states * num_models, after_context + num_own)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """By name; inverse of from_arrays."""
        named = {
            f"{head}.{i}.{name}": array
            for head in HEADS
            for i, layer in enumerate(getattr(self, head).layers)
            for name, array in zip(("weight", "bias"), layer, strict=True)
        }
        return {**named, "estimate_weight": np.array(self.estimate_weight, dtype=np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], num_context: int) -> "QNetwork":
        def perceptron(head: str) -> Perceptron:
            num_layers = sum(name.startswith(f"{head}.") for name in arrays) // 2
            return Perceptron([(arrays[f"{head}.{i}.weight"], arrays[f"{head}.{i}.bias"]) for i in range(num_layers)])

        quality, bankruptcy = (perceptron(head) for head in HEADS)
        return cls(quality, bankruptcy, num_context, float(arrays["estimate_weight"]))


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
        return arrays | {f"network.{name}": value for name, value in self.network.arrays().items()}

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

            def part(prefix: str) -> dict[str, NDArray[Any]]:
                return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

            layout = StateLayout.from_json(manifest["layout"])
            artefact = cls(
                catalog=Catalog.from_json(manifest["catalog"]),
                embedder=manifest["embedder"],
                layout=layout,
                estimator=OutcomeEstimator.from_arrays(part("estimator.")),
                network=QNetwork.from_arrays(part("network."), layout.num_context),
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
        num_models, num_context = len(self.catalog), self.layout.num_context
        expected = {"quality": num_context + NUM_AFTER - NUM_RISK, "bankruptcy": num_context + NUM_AFTER}
        widths = {head: getattr(self.network, head).widths for head in HEADS}
        if self.estimator.num_models != num_models:
            raise ArtefactError(
                f"{folder}: an estimator of {self.estimator.num_models} models in a pool of {num_models}; train again"
            )
        if self.layout.num_models != num_models or any(widths[head] != (expected[head], 1) for head in HEADS):
            raise ArtefactError(
                f"{folder}: the network's heads map {widths} for {self.layout.num_models} models, expected "
                f"{expected} -> 1 for {num_models}; the folder mixes two artefacts"
            )
        if self.estimator.features.summary_width != self.layout.summary_width:
            raise ArtefactError(
                f"{folder}: the estimator summarises a query in {self.estimator.features.summary_width} numbers, the "
                f"layout has {self.layout.summary_width}; the folder mixes two artefacts"
            )
        risk, num_types = self.estimator.risk, self.estimator.features.num_types
        if risk is not None and (
            risk.chance.shape[1:] != (num_types, num_models, len(risk.money_usd))
            or risk.mean_cost_usd.shape != (num_types, num_models)
        ):
            raise ArtefactError(
                f"{folder}: a plan of shape {risk.chance.shape} for {num_types} types of task and {num_models} models; "
                "the folder mixes two artefacts"
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
