"""`seqroute <command>`: flags in, one JSON line on stdout, progress on stderr; exit 0 ok, 1 failed, 2 wrong usage."""

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from seqroute_ray.core.errors import ConfigError, SeqRouteError, UnknownModelError
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.data.change_pool import AddModelConfig, RemoveModelConfig
from seqroute_ray.data.importer import ImportConfig
from seqroute_ray.data.relabel import RelabelConfig
from seqroute_ray.data.sample import SampleConfig
from seqroute_ray.evaluation.calibrate import CalibrateConfig
from seqroute_ray.evaluation.config import EvaluateConfig, OpeConfig
from seqroute_ray.quickstart import QuickstartConfig
from seqroute_ray.registry_commands import RegistryCommand
from seqroute_ray.retraining.config import RetrainConfig
from seqroute_ray.serving.ledgers.commands import LedgerCommand
from seqroute_ray.serving.new_key import NewKeyConfig
from seqroute_ray.serving.serve import ServeConfig
from seqroute_ray.training.config import TrainConfig, TuneConfig

Result = dict[str, Any]
Flat = tyro.conf.arg(name="")  # the config's fields are the command's flags, without a prefix

# Each command imports what it needs when it runs: `seqroute --help` loads neither Ray nor torch.


def sample(config: Annotated[SampleConfig, Flat], out: Path) -> Result:
    """Write session logs sampled from the bundled outcomes.

    Args:
        config: what to sample.
        out: Parquet file in the log schema.
    """
    from seqroute_ray.data.sample import write_sample

    return {"num_sessions": config.num_sessions, "num_rows": write_sample(config, out), "out": out}


def import_(config: Annotated[ImportConfig, Flat]) -> Result:
    """Check logs of turns, calls or episodes and write session Parquet, on Ray Data or in this process."""
    from seqroute_ray.stages import import_

    return import_(config)


def relabel(config: Annotated[RelabelConfig, Flat], dry_run: bool = False) -> Result:
    """Relabel sessions under hypothetical budgets, on Ray Data or in this process.

    Args:
        config: what to relabel.
        dry_run: Print what would be written (rows, bytes, budgets), from one shard, and write nothing.
    """
    if dry_run:
        from seqroute_ray.data.dry_run import plan_relabeling

        return asdict(plan_relabeling(config))
    from seqroute_ray.stages import relabel

    return relabel(config)


def inspect(dataset: tyro.conf.Positional[str]) -> Result:
    """Print what a dataset holds, whether every model occurs at every budget, and check all checksums.

    Args:
        dataset: Folder or URI written by `seqroute relabel`.
    """
    from seqroute_ray.data.inspect import inspect_dataset, tables, to_json
    from seqroute_ray.progress import console

    inspection = inspect_dataset(dataset)
    console.print(*tables(inspection), sep="\n")
    return to_json(inspection)


def train(config: Annotated[TrainConfig, Flat], dry_run: bool = False) -> Result:
    """Train a policy with discrete CQL on RLlib, or go on with a training that was cut off.

    Args:
        config: what to train.
        dry_run: Print network, steps, expected time and memory, from one shard, and write nothing.
    """
    if dry_run:
        from seqroute_ray.training.plan import plan_training

        return asdict(plan_training(config))
    from seqroute_ray.stages import train

    return train(config)


def tune(config: Annotated[TuneConfig, Flat]) -> Result:
    """Search for settings of training with Ray Tune, judged on the tune part."""
    from seqroute_ray.stages import tune

    return tune(config)


def calibrate(config: Annotated[CalibrateConfig, Flat]) -> Result:
    """Choose on the tune part what a bankruptcy costs the policy, by budget."""
    from seqroute_ray.stages import calibrate

    return calibrate(config)


def add_model(config: Annotated[AddModelConfig, Flat]) -> Result:
    """Add a model to a trained policy, from a few observed turns or none, without training again."""
    from seqroute_ray.data.change_pool import add_model_to_policy

    return _pool_of(config.out, add_model_to_policy(config))


def remove_model(config: Annotated[RemoveModelConfig, Flat]) -> Result:
    """Take a model out of a trained policy, without training again."""
    from seqroute_ray.data.change_pool import remove_model_from_policy

    return _pool_of(config.out, remove_model_from_policy(config))


def _pool_of(out: Path, artefact: PolicyArtefact) -> Result:
    return {"policy_dir": out, "policy_version": artefact.version, "models": list(artefact.catalog.names)}


def evaluate(config: Annotated[EvaluateConfig, Flat]) -> Result:
    """Replay a policy and the baselines on held-out sessions."""
    from seqroute_ray.stages import evaluate

    return evaluate(config)


def ope(config: Annotated[OpeConfig, Flat]) -> Result:
    """Estimate a policy's quality from logs of another one, without the other models' outcomes."""
    from seqroute_ray.stages import ope

    return ope(config)


def serve(config: Annotated[ServeConfig, Flat]) -> Result:
    """Serve a policy behind an OpenAI-compatible endpoint until interrupted."""
    from seqroute_ray.serving.serve import serve_forever

    serve_forever(config)
    return {"stopped": True}


def new_key(config: Annotated[NewKeyConfig, Flat]) -> Result:
    """Make an API key: shown once; the server's settings get its hash."""
    from seqroute_ray.serving.new_key import new_key

    return new_key(config)


def ledger(command: Annotated[LedgerCommand, Flat]) -> Result:
    """Audit a ledger, show one account, reconcile it with a provider's bill, or export its decision log."""
    return command.run()


def registry(command: Annotated[RegistryCommand, Flat]) -> Result:
    """List and show versions of policies, add one, and say which of them serve."""
    return command.run()


def retrain(config: Annotated[RetrainConfig, Flat]) -> Result:
    """From served decisions to a better policy: train, judge, try it on some sessions, promote it or roll it back."""
    from seqroute_ray.retraining.rounds import retrain

    return retrain(config)


def quickstart(config: Annotated[QuickstartConfig, Flat]) -> Result:
    """The paper-size run on bundled outcomes: sample, import, relabel, train, evaluate, serve one session."""
    from seqroute_ray.quickstart import run_quickstart

    return run_quickstart(config)


COMMANDS: dict[str, Callable[..., Result]] = {
    "sample": sample,
    "import": import_,
    "relabel": relabel,
    "inspect": inspect,
    "train": train,
    "tune": tune,
    "calibrate": calibrate,
    "add-model": add_model,
    "remove-model": remove_model,
    "evaluate": evaluate,
    "ope": ope,
    "serve": serve,
    "new-key": new_key,
    "ledger": ledger,
    "registry": registry,
    "retrain": retrain,
    "quickstart": quickstart,
}


def run(command: Callable[[], Result]) -> int:
    """Run a command; print its result as one JSON line, or its error as one line. Returns the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("seqroute_ray").setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the JSON line alone
            result = command()
    except SeqRouteError as error:
        print(f"seqroute: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | UnknownModelError) else 1
    except KeyboardInterrupt:
        print("seqroute: interrupted", file=sys.stderr)
        return 1
    print(json.dumps(result, default=str))
    return 0


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(_parse_and_call))


def _parse_and_call() -> Result:
    # --help belongs on stdout, which run() has redirected: tyro prints before any command runs.
    with contextlib.redirect_stdout(sys.__stdout__ or sys.stdout) if _wants_help() else contextlib.nullcontext():
        result: Result = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="seqroute", description=__doc__)
        return result


def _wants_help() -> bool:
    return not sys.argv[1:] or bool({"-h", "--help"} & set(sys.argv[1:]))


if __name__ == "__main__":
    main()
