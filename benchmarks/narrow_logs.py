"""When does conservatism matter? Logs of one model most of the time, and the exact optimum as the scale.

    python benchmarks/narrow_logs.py [--num-seeds 5]

The MDP is budget_mdp.py's. A log has NUM_SESSIONS sessions: each turn goes to one model, but with chance `exploration`
to a random one; hindsight relabeling replays it under other budgets. Costs (prices and tokens) are known, qualities are
estimated from the log, by type of task. Learners: double DQN (cql_alpha 0), CQL, behaviour cloning (td_weight 0), with
the recipe's network, loss and masks. Policies are evaluated exactly, as shares of the optimum's quality, mean over
BUDGETS; differences to double DQN are paired by seed (of log, network and batches), with t intervals of 95 %. One core,
30 minutes beside much other work (13 of CPU). Ends with one JSON line.
"""

import json
import sys
import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from _processes import machine
from budget_mdp import BUDGETS, NUM_TURNS, NUM_UNITS, BudgetMdp, at_budgets
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.hbr import HbrConfig, Transitions, relabel
from seqroute_ray.core.mdp import StateLayout, TurnFeatures, affordable, encode_state
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.training.config import CqlConfig
from seqroute_ray.training.cql import Heads, Network, cql_loss, make_network, td_targets
from seqroute_ray.training.reader import BANKRUPT, NEXT_ALLOWED
from seqroute_ray.training.relabeled import RelabeledData

NUM_SESSIONS = 1000
CQL = CqlConfig(hidden=(32, 32), risk_hidden=(16, 16), batch_size=256, tau=0.02)  # the MDP is small
MIDDLE, DEAREST = "llama-3.1-70b-instruct", "gpt-4o-2024-08-06"
LOGS = ((MIDDLE, 0.02), (MIDDLE, 0.1), (DEAREST, 0.02), (DEAREST, 0.1), (DEAREST, 1.0))  # who answers, and exploration


@dataclass(frozen=True, kw_only=True)
class Learner:
    cql_alpha: float
    td_weight: float = 1.0


BASE = "double DQN"
LEARNERS = {
    BASE: Learner(cql_alpha=0.0),
    "CQL 0.01": Learner(cql_alpha=0.01),
    "CQL 0.1": Learner(cql_alpha=0.1),
    "CQL 1": Learner(cql_alpha=1.0),
    "cloning": Learner(cql_alpha=1.0, td_weight=0.0),
}
PRIOR_TURNS = 2.0  # an estimate of quality is drawn to the mean of the log as if by so many turns
NO_PENALTY = 0.0  # the optimum counts quality alone
HIGH_QUANTILE = 0.95
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by seeds


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_seeds: int = 5
    num_steps: int = 1000


@dataclass(frozen=True)
class Log:
    """A log's transitions, and what is estimated from it."""

    layout: StateLayout
    estimates: Estimates  # [R, K] by type of task
    turn_type: IntArray  # [N]
    transitions: Transitions

    def features(self, turn_type: IntArray) -> TurnFeatures:
        """Of turns of these types [n]; the type itself stands where a session's history does elsewhere."""
        one_hot = np.eye(len(self.estimates.quality), dtype=np.float32)
        return TurnFeatures(self.estimates.take(turn_type), one_hot[turn_type])


def sample_sessions(mdp: BudgetMdp, behaviour: str, exploration: float, rng: np.random.Generator) -> Sessions:
    shape = NUM_SESSIONS * NUM_TURNS
    question = rng.integers(len(mdp.question_type), size=shape)
    explores = rng.random(shape) < exploration
    action = np.where(explores, rng.integers(mdp.num_models, size=shape), mdp.catalog.action(behaviour))
    units = np.floor(mdp.cost_units[question, action] + rng.random(shape))
    nothing = np.zeros((shape, mdp.num_models))
    return Sessions(
        catalog=mdp.catalog,
        embedder="",
        session_id=np.arange(NUM_SESSIONS).astype(np.str_),
        part=np.full(NUM_SESSIONS, "fit"),
        offsets=np.arange(NUM_SESSIONS + 1) * NUM_TURNS,
        embedding=np.zeros((shape, 1), dtype=np.float16),
        action=action,
        quality=mdp.quality[question, action].astype(np.float32),
        cost_nusd=to_nusd(units * mdp.unit_usd),
        prompt_tokens=np.zeros(shape, dtype=np.int64),
        propensity=np.full(shape, np.nan, dtype=np.float32),
        group_id=question.astype(np.str_),
        source=mdp.types[mdp.question_type[question]],
        outcome_quality=np.full_like(nothing, np.nan, dtype=np.float32),
        outcome_cost_nusd=np.full_like(nothing, -1, dtype=np.int64),
    )


def make_log(mdp: BudgetMdp, behaviour: str, exploration: float, seed: int) -> Log:
    sessions = sample_sessions(mdp, behaviour, exploration, np.random.default_rng(seed))
    hbr = HbrConfig(min_budget=min(BUDGETS) / 2, max_budget=max(BUDGETS), num_budgets=6, seed=seed)
    layout = StateLayout(
        num_models=mdp.num_models,
        summary_width=len(mdp.types),
        reference_cost_usd=mdp.reference_cost_usd,
        expected_turns_left=tuple(float(x) for x in range(NUM_TURNS, 0, -1)),
    )
    turn_type = np.searchsorted(mdp.types, sessions.source)
    estimates = estimate(mdp, turn_type, sessions.action, sessions.quality)
    return Log(layout, estimates, turn_type, relabel(sessions, mdp.reference_cost_usd, hbr))


def estimate(mdp: BudgetMdp, turn_type: IntArray, action: IntArray, quality: NDArray[np.float32]) -> Estimates:
    """[R, K]: quality from the log, costs as they are."""
    total, count = np.zeros((2, len(mdp.types), mdp.num_models))
    np.add.at(total, (turn_type, action), quality)
    np.add.at(count, (turn_type, action), 1)
    by_type = [mdp.cost_units[mdp.question_type == r] * mdp.unit_usd for r in range(len(mdp.types))]
    high_usd = np.array([np.quantile(cost_usd, HIGH_QUANTILE, axis=0) for cost_usd in by_type], dtype=np.float32)
    return Estimates(
        quality=((total + PRIOR_TURNS * quality.mean()) / (count + PRIOR_TURNS)).astype(np.float32),
        cost_usd=np.array([cost_usd.mean(axis=0) for cost_usd in by_type], dtype=np.float32),
        cost_high_usd=high_usd,
        runaway=np.zeros_like(high_usd),
        runaway_cost_usd=high_usd,
    )


def fit(log: Log, learner: Learner, settings: Settings, seed: int) -> Network:
    """The recipe's network and loss on tensors in memory, but the conservative term goes over all models."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = RelabeledData(log.layout, log.features(log.turn_type), log.transitions)
    columns = {name: torch.from_numpy(values) for name, values in data.batch(np.arange(len(data))).items()}
    settings_of_network = {**data.network, "fcnet_hiddens": CQL.hidden, "risk_hidden": CQL.risk_hidden}
    network = make_network(data.state_dim, data.num_actions, settings_of_network)
    target = deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=CQL.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.num_steps)
    for _ in range(settings.num_steps):
        rows = torch.from_numpy(rng.integers(len(data), size=CQL.batch_size))
        loss = loss_of(network, target, {name: values[rows] for name, values in columns.items()}, learner)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), CQL.tau)
    return network


def loss_of(
    network: Network,
    target: Network,
    batch: dict[str, torch.Tensor],
    learner: Learner,
) -> torch.Tensor:
    with torch.no_grad():
        following, following_target = (Heads.of(net(batch[Columns.NEXT_OBS])) for net in (network, target))
        targets = td_targets(
            batch[Columns.REWARDS],
            batch[BANKRUPT],
            batch[Columns.TERMINATEDS],
            following,
            following_target,
            batch[NEXT_ALLOWED],
            CQL.gamma,
            NO_PENALTY,
        )
    heads = Heads.of(network(batch[Columns.OBS]))
    return cql_loss(heads, batch[Columns.ACTIONS], targets, learner.td_weight, learner.cql_alpha, NO_PENALTY).total


def grid(log: Log) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Every state of the MDP [NUM_TURNS * R * (NUM_UNITS + 1), state_dim], and its affordable models [., K]."""
    shape = (NUM_TURNS, len(log.estimates.quality), NUM_UNITS + 1)
    turn, turn_type, units = (index.ravel() for index in np.indices(shape))
    features, remaining_usd = log.features(turn_type), units * log.layout.reference_cost_usd / NUM_UNITS
    allowed = affordable(features.estimates.cost_usd, features.estimates.cost_high_usd, remaining_usd)
    return encode_state(log.layout, features, remaining_usd, turn), allowed


def as_policy(action: IntArray) -> IntArray:
    """Actions in the states of `grid` as BudgetMdp has them: [NUM_TURNS, R, NUM_UNITS + 1]."""
    return action.reshape(NUM_TURNS, -1, NUM_UNITS + 1)


def greedy(log: Log, network: Network) -> IntArray:
    """[NUM_TURNS, R, NUM_UNITS + 1]."""
    states, allowed = grid(log)
    with torch.no_grad():
        q_values = Heads.of(network(torch.from_numpy(states))).q_values(NO_PENALTY).numpy()
    return as_policy(np.argmax(np.where(allowed, q_values, -np.inf), axis=1))


def shares(mdp: BudgetMdp, behaviour: str, exploration: float, settings: Settings, seed: int) -> FloatArray:
    """[learners, budgets] of the optimum's quality."""
    log, best = make_log(mdp, behaviour, exploration, seed), at_budgets(mdp.optimum()[0])
    networks = [fit(log, learner, settings, seed) for learner in LEARNERS.values()]
    return np.array([at_budgets(mdp.value_of(greedy(log, network))) / best for network in networks])


def interval(values: FloatArray) -> list[float]:
    """Mean over seeds [S] and its 95 % t interval."""
    mean, half = float(values.mean()), float(T_975[len(values)] * values.std(ddof=1) / np.sqrt(len(values)))
    return [round(x, 4) for x in (mean, mean - half, mean + half)]


def summary(of_seeds: FloatArray) -> dict[str, Any]:
    """of_seeds: [S, learners, budgets]."""
    of_seed = of_seeds.mean(axis=2)
    return {
        learner: {
            "share": interval(of_seed[:, i]),
            "to_double_dqn": interval(of_seed[:, i] - of_seed[:, list(LEARNERS).index(BASE)]),
            "by_budget": np.round(of_seeds[:, i].mean(axis=0), 3).tolist(),
        }
        for i, learner in enumerate(LEARNERS)
    }


def main(settings: Settings) -> None:
    if settings.num_seeds not in T_975:
        raise SystemExit(f"--num-seeds must be {min(T_975)} to {max(T_975)}, got {settings.num_seeds}")
    started, mdp, logs = time.monotonic(), BudgetMdp.bundled(), []
    torch.set_num_threads(1)
    for behaviour, exploration in LOGS:
        seeds = [shares(mdp, behaviour, exploration, settings, seed) for seed in range(settings.num_seeds)]
        alone = np.full((NUM_TURNS, len(mdp.types), NUM_UNITS + 1), mdp.catalog.action(behaviour))
        share_alone = float((at_budgets(mdp.value_of(alone)) / at_budgets(mdp.optimum()[0])).mean())
        log = {"behaviour": behaviour, "exploration": exploration, "its_model_alone": round(share_alone, 4)}
        logs.append(log | {"learners": summary(np.array(seeds))})
        print(json.dumps(logs[-1]), file=sys.stderr)
    seconds = round(time.monotonic() - started)
    print(json.dumps({"logs": logs, "num_seeds": settings.num_seeds, "seconds": seconds, "machine": machine()}))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
