"""Change the pool of a trained policy without training again: add a model, with few observations or none; remove one.

No weight of the Q-network belongs to one model, so only the estimator changes. A new model's estimates start from what
its metadata tell (prices, size, family: a regression over the models already known) and move away from there as far as
its own observations carry: a metadata embedding and a learned residual, after MTRouter (arXiv:2604.23530). A plan of
bankruptcies (`risk.py`) holds for the old pool alone: it is dropped, and the network's head says their chances again.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.estimator import Column, OutcomeEstimator
from seqroute_ray.core.fitting import EstimatorConfig, fit_column, observe
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.queries import Queries
from seqroute_ray.core.sessions import Sessions

METADATA_PENALTY = 1.0  # ridge weight of each standardised entry, over one row a known model
RESIDUAL_PENALTY = 1.0  # of a new model's own type intercepts: how far models of equal metadata differ
PRIOR_ROWS = 20  # observations that weigh as much as the prior in a new model's spread
MIN_PRICE_USD_PER_M = 0.01  # a free model's price in logarithms


def add_model(artefact: PolicyArtefact, model: ModelSpec, sessions: Sessions | None) -> PolicyArtefact:
    """The same policy over a pool with one more model, the last.

    sessions: turns that the new model answered, over a catalog that has it; None: nothing is known but its metadata.
    Raises ConfigError when the pool has the model already.
    """
    if model.name in artefact.catalog.names:
        raise ConfigError(f"model {model.name!r} is in the policy's pool already: {', '.join(artefact.catalog.names)}")
    catalog = Catalog((*artefact.catalog.models, model))
    column = metadata_prior(artefact.estimator, artefact.catalog, model)
    if sessions is not None:
        column = _with_observations(artefact, column, sessions, sessions.catalog.action(model.name))
    estimator = OutcomeEstimator.of_columns(artefact.estimator.features, [*artefact.estimator.columns(), column])
    return _with_pool(artefact, catalog, estimator, f"added {model.name}")


def remove_model(artefact: PolicyArtefact, name: str) -> PolicyArtefact:
    """The same policy over the other models. Raises UnknownModelError, ConfigError when none would be left."""
    gone = artefact.catalog.action(name)
    if len(artefact.catalog) == 1:
        raise ConfigError(f"model {name!r} is the only one of the pool; a policy needs at least one")
    catalog = artefact.catalog.select([other for other in artefact.catalog.names if other != name])
    columns = [column for k, column in enumerate(artefact.estimator.columns()) if k != gone]
    estimator = OutcomeEstimator.of_columns(artefact.estimator.features, columns)
    return _with_pool(artefact, catalog, estimator, f"removed {name}")


def metadata_prior(estimator: OutcomeEstimator, catalog: Catalog, model: ModelSpec) -> Column:
    """A new model's column as the known models' metadata suggest it."""
    table = metadata(Catalog((*catalog.models, model)))
    known, new = table[:-1], table[-1]
    penalty = np.full(known.shape[1], METADATA_PENALTY)
    penalty[0] = 1e-6  # the mean over models is free
    influence = new @ np.linalg.solve(known.T @ known + np.diag(penalty), known.T)  # [K] weight of each known model
    columns = estimator.columns()

    def mixed(name: str) -> Any:
        return sum(w * getattr(column, name) for w, column in zip(influence, columns, strict=True))

    return Column(**{name: mixed(name) for name in Column.__dataclass_fields__})


def metadata(catalog: Catalog) -> FloatArray:
    """[K, M]: 1, standardised log prices and log size (0 where unknown), and one entry a family."""
    size_b = np.array([np.nan if model.size_b is None else model.size_b for model in catalog.models])
    price_in, price_out = (np.maximum(1e6 * price, MIN_PRICE_USD_PER_M) for price in catalog.usd_per_token())
    entries = [_standardised(np.log(values)) for values in (price_out, price_in, size_b)]
    families = sorted({model.family for model in catalog.models} - {""})
    of_family = [np.array([float(model.family == family) for model in catalog.models]) for family in families]
    return np.stack([np.ones(len(catalog)), *entries, *of_family], axis=1)


def _standardised(values: FloatArray) -> FloatArray:
    """Mean 0, deviation 1 over the known values; 0 where unknown or where all are equal."""
    known = np.isfinite(values)
    if not known.any():
        return np.zeros_like(values)
    deviation = float(values[known].std())
    return np.where(known, (values - values[known].mean()) / deviation, 0.0) if deviation > 0 else np.zeros_like(values)


def _with_observations(artefact: PolicyArtefact, prior: Column, sessions: Sessions, action: int) -> Column:
    """The prior, moved by what was observed of the model."""
    seen = observe(sessions)
    quality, log_tokens = seen.quality[:, action], seen.log_tokens[:, action]
    num_judged, num_billed = int(np.isfinite(quality).sum()), int(np.isfinite(log_tokens).sum())
    if not (num_judged and num_billed):
        name = sessions.catalog.names[action]
        raise ConfigError(f"the sessions hold no judged turn of {name!r}; leave them out to add it by metadata alone")
    config = replace(EstimatorConfig(**artefact.configs["estimator"]), type_penalty=RESIDUAL_PENALTY)
    features = artefact.estimator.features
    design = features.design(seen.queries, features.summary(seen.queries)).astype(np.float64)
    own = fit_column(features, design, quality, log_tokens, config, prior)
    share = num_billed / (num_billed + PRIOR_ROWS)
    scalars = ("runaway_log_tokens", "log_mean_shift", "high_deviations")
    return replace(own, **{name: share * getattr(own, name) + (1 - share) * getattr(prior, name) for name in scalars})


def _with_pool(artefact: PolicyArtefact, catalog: Catalog, estimator: OutcomeEstimator, change: str) -> PolicyArtefact:
    """The artefact over another pool; budgets keep their scale."""
    features = estimator.features
    typical = Queries(np.zeros((1, features.num_dims)), np.array([""]), np.array([0]))
    known = dict(zip(artefact.catalog.names, artefact.configs["mean_cost_usd"], strict=True))
    estimated = estimator.predict(typical, catalog).cost_usd[0].tolist()
    mean_cost = [known.get(name, cost) for name, cost in zip(catalog.names, estimated, strict=True)]
    changes = [*artefact.configs.get("pool_changes", []), change]
    return replace(
        artefact,
        catalog=catalog,
        layout=replace(artefact.layout, num_models=len(catalog)),
        estimator=estimator,
        configs={**artefact.configs, "mean_cost_usd": mean_cost, "pool_changes": changes},
    )
