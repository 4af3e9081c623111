import numpy as np
import pytest

from seqroute_ray.core.attempt_estimates import estimate_attempts
from seqroute_ray.core.attempt_mdp import AttemptQPolicy, relabel_attempts
from seqroute_ray.core.attempts import TOOL, Attempts, replay_attempts
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.evaluation.attempt_policies import Cascade
from seqroute_ray.mint import CQL, ORACLE, MintConfig, run_mint
from seqroute_ray.training.attempts import AttemptData, train_attempts
from seqroute_ray.training.config import CqlConfig
from tests.attempts_support import USD
from tests.support import make_catalog

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

FAST = CqlConfig(cql_alpha=0.001, history_noise=0.0, hidden=(32, 32), batch_size=256, num_steps=600)


def two_kinds_of_tasks(num_tasks: int = 200) -> Attempts:
    """Even tasks only the first model solves (for 1 dollar), odd ones only the second (for 2): one must know which."""
    odd = np.arange(num_tasks) % 2
    success = np.stack([odd == 0, odd == 1], axis=1)
    return Attempts(
        catalog=make_catalog(2),
        task_id=np.array([f"t{i}" for i in range(num_tasks)]),
        task_type=np.where(odd, "odd", "even"),
        part=np.full(num_tasks, "fit"),
        num_turns=np.ones((num_tasks, 2), dtype=np.int64),
        success=success,
        cost_nusd=np.broadcast_to(np.array([[[1], [2]]]) * USD, (num_tasks, 2, 1)).copy(),
        kind=np.full((num_tasks, 2, 1), TOOL),
    )


def test_the_learned_policy_solves_what_no_cascade_can() -> None:
    attempts, every = two_kinds_of_tasks(), np.ones(200, dtype=np.bool_)
    estimates = estimate_attempts(attempts, every)
    transitions = relabel_attempts(attempts, estimates, np.arange(200), (0.5, 6.0), num_replays=30, seed=0)
    network = train_attempts(AttemptData(estimates, transitions, 2.0), FAST)
    tasks, budget = np.arange(200), 2 * USD  # enough for either model, not for both
    ours = replay_attempts(AttemptQPolicy(network, estimates, 2.0), attempts, tasks, budget).solved.mean()
    best = max(
        replay_attempts(Cascade(order, (1, 1)), attempts, tasks, budget).solved.mean() for order in ((0, 1), (1, 0))
    )
    assert best == 0.5
    assert ours >= 0.95


def test_a_comparison_judges_every_policy_on_every_task_at_every_budget() -> None:
    config = MintConfig(
        budgets_usd=(0.003, 0.06), num_folds=2, num_seeds=1, num_replays=4, num_replicates=100, cql=FAST
    )
    report = run_mint(config)
    policies = {row["policy"] for row in report["rows"]}
    assert {CQL, ORACLE, "cascade", "budget heuristic", "myopic", "boundary-guided", "random"} <= policies
    assert len(report["rows"]) == 2 * len(policies)
    success = {(row["policy"], row["budget_usd"]): row["success"] for row in report["rows"]}
    for (policy, budget), value in success.items():
        assert 0 <= value <= success[ORACLE, budget]
        assert policy != CQL or value > success["random", budget]
    for row in report["comparisons"]:
        assert row["low"] <= row["difference"] <= row["high"]
        if row["budget"] != "mean":
            assert row["difference"] == pytest.approx(
                success[CQL, row["budget"]] - success[row["baseline"], row["budget"]]
            )
    means = {row["baseline"]: row["difference"] for row in report["comparisons"] if row["budget"] == "mean"}
    assert set(means) == policies - {CQL}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budgets_usd": ()}, "budgets_usd must be > 0"),
        ({"budgets_usd": (0.1, 0.0)}, "budgets_usd must be > 0"),
        ({"num_folds": 1}, "num_folds >= 2"),
        ({"num_seeds": 0}, "num_seeds >= 1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MintConfig(**fields)  # type: ignore[arg-type]
