"""TensorBoard's view of a training run."""

from dataclasses import replace
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from seqroute_ray import stages
from seqroute_ray.data.relabel import RelabelReport
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.event_files import EventFiles

CQL = CqlConfig(hidden=(16,), risk_hidden=(8,), num_steps=500, batch_size=64)


def events_in(path: Path) -> list[Event]:
    """An event file is records of: length (8 bytes), checksum (4), event, checksum (4)."""
    content, events = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return events


def scalars(path: Path) -> dict[tuple[str, int], float]:
    return {(v.tag, event.step): v.simple_value for event in events_in(path) for v in event.summary.value}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_training_leaves_losses_and_figures_of_the_tune_part_for_tensorboard(
    toy_dataset: RelabelReport, toy_tune_sessions: Path, tmp_path: Path
) -> None:
    config = TrainConfig(
        dataset=toy_dataset.out,
        out=tmp_path / "p",
        cql=CQL,
        tune_sessions=toy_tune_sessions,
        checkpoint_every=500,
    )
    result = stages.train(config)
    (path,) = Path(result["tensorboard_dir"]).rglob("events.out.tfevents.*")
    assert path.parent.name == Path(result["checkpoints_dir"]).name
    found = scalars(path)
    assert found["aiq", 500] == pytest.approx(result["aiq"])
    for name in ("quality_loss", "bankruptcy_loss", "conservative_loss", "q_mean", "q_gap"):
        assert {step for tag, step in found if tag == name} == {250, 500}
    assert stages.train(replace(config, cql=replace(CQL, seed=1)))["tensorboard_dir"] == result["tensorboard_dir"]
    assert len(list((tmp_path / "p.tensorboard").iterdir())) == 2


def test_a_run_that_goes_on_hides_the_steps_that_it_does_again(tmp_path: Path) -> None:
    with EventFiles(tmp_path) as events:
        events.write(250, {"loss": 2.0})
        events.write(500, {"loss": 1.0})
    (first,) = tmp_path.iterdir()
    assert scalars(first) == {("loss", 250): 2.0, ("loss", 500): 1.0}
    first.rename(tmp_path / "first")  # names hold whole seconds
    with EventFiles(tmp_path) as events:
        events.write(500, {"loss": 0.5})
    (second,) = (path for path in tmp_path.iterdir() if path.name != "first")
    assert scalars(second) == {("loss", 500): 0.5}
    started = [event.step for event in events_in(second) if event.session_log.status == SessionLog.START]
    assert started == [500]  # TensorBoard drops what earlier files say of this step and later ones


def test_a_run_that_has_nothing_to_tell_leaves_no_file(tmp_path: Path) -> None:
    with EventFiles(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
