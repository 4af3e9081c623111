from importlib.resources import as_file, files

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqroute_ray.core.attempts import ANSWER, INVALID, TOOL
from seqroute_ray.core.errors import UnknownModelError
from seqroute_ray.data.mint import MINT_POOL, held_out_twins, load_mint


def test_the_bundled_attempts_have_the_figures_of_their_source() -> None:
    attempts = load_mint(MINT_POOL)
    assert len(attempts) == 586
    assert attempts.catalog.names == MINT_POOL
    counts = {part: int((attempts.part == part).sum()) for part in ("fit", "tune", "test")}
    assert counts == {"fit": 345, "tune": 124, "test": 117}
    # Success and cost a task of GPT-4 and Llama-3-70B, as the data's own documentation states them.
    np.testing.assert_allclose(attempts.success.mean(axis=0)[1:], [0.662, 0.695], atol=5e-4)
    np.testing.assert_allclose(attempts.cost_nusd.sum(axis=2).mean(axis=0)[1:] / 1e9, [0.0029, 0.155], rtol=5e-3)
    assert len(load_mint().catalog) == 22


def test_turns_are_coherent() -> None:
    attempts = load_mint()
    taken = np.arange(5) < attempts.num_turns[..., None]
    assert attempts.num_turns.min() == 1
    assert attempts.num_turns.max() == 5
    assert (attempts.cost_nusd[~taken] == 0).all()
    assert (attempts.kind[~taken] == 0).all()
    assert (attempts.cost_nusd[taken] > 0).mean() > 0.999  # two attempts ended before their first turn
    assert set(np.unique(attempts.kind[taken]).tolist()) <= {0, TOOL, ANSWER, INVALID}


def test_a_sub_pool_holds_its_models_outcomes_in_its_order() -> None:
    every, pair = load_mint(), load_mint(MINT_POOL[::-1][:2])
    for k, name in enumerate(pair.catalog.names):
        action = every.catalog.action(name)
        np.testing.assert_array_equal(pair.success[:, k], every.success[:, action])
        np.testing.assert_array_equal(pair.cost_nusd[:, k], every.cost_nusd[:, action])
    with pytest.raises(UnknownModelError, match="nobody"):
        load_mint(("nobody",))


def test_twins_of_held_out_questions_are_never_of_the_fit_part() -> None:
    twins = held_out_twins()
    assert 0 < twins.sum() < 77
    assert not (load_mint().part[twins] == "fit").any()


def test_the_files_hold_no_text() -> None:
    folder = files("seqroute_ray.data") / "bundled"
    columns = []
    for name in ("mint_tasks", "mint_attempts"):
        with as_file(folder / f"{name}.parquet") as path:
            columns += pq.read_schema(path).names
    assert columns == [
        *("task_id", "dataset", "part", "held_out_twin"),
        *("success", "num_turns", "prompt_tokens", "completion_tokens"),
        *("turn_prompt_tokens", "turn_completion_tokens", "turn_kind"),
    ]
