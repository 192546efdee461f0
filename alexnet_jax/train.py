"""§5: a whole run: set up, loop, finish."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from alexnet_jax.config import Config
from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.data.input_pipeline import Batch
from alexnet_jax.device import hosts, parallel
from alexnet_jax.device.spread import Spread
from alexnet_jax.files import check_text
from alexnet_jax.options import InputError, wrong_with_place
from alexnet_jax.paper.evaluate import Errors
from alexnet_jax.paper.optim import plateau_after, plateaus
from alexnet_jax.paper.table import Layers
from alexnet_jax.paper.train_state import TrainState, init_state
from alexnet_jax.paper.train_step import Augment
from alexnet_jax.paper.written import Written, to_json
from alexnet_jax.runs import report
from alexnet_jax.runs.checkpoint import Checkpoints
from alexnet_jax.runs.log import RunLog, SilentLog, StepMetrics
from alexnet_jax.runs.stopping import stop_requests
from alexnet_jax.shown import say
from alexnet_jax.train_setup import Metrics, Run, named_devices, set_up


def fit(
    layers: Layers,
    dataset: Dataset,
    config: Config,
    workdir: str | Path,
    *,
    optimizer: optax.GradientTransformation | None = None,
    augment: Augment | None = None,
    metrics: Metrics | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Errors:
    """Trains a network in `workdir`, or goes on where a run was stopped there; returns its errors on the validation
    split.

    Leaves config.json, data.npz, metrics.jsonl, tensorboard/, checkpoints/, figures/ and result.json.

    Args:
      layers: the table; its last layer has an output for each class of the data set, at least.
      optimizer: used as it is in the place of the paper's rule, and the config's rates, momentum and decay are not.
        With `config.plateau_patience` it is wrapped in `optim.with_plateau`, if it is not yet.
      augment: in the place of §4.1's; the network sees what it returns.
      metrics: more numbers to be logged. They may be others in a run that is continued.
      devices: over which to spread each batch; by default all, of all hosts.

    Raises InputError, before anything starts, where this cannot be run, or `workdir` holds another run, or another
    process trains there.
    """
    if problem := wrong_with_place(str(workdir)):
        raise InputError(f"--workdir={workdir}: must be {problem}")
    check_text(workdir, f"--workdir={workdir}")
    workdir = Path(workdir).expanduser()
    with contextlib.ExitStack() as held:
        run = set_up(layers, dataset, config, workdir, optimizer, augment, metrics or Metrics(), devices, held)
        errors, params, best_step = _loop(run)
        if hosts.is_first_host():
            result = {"steps": run.intervals.last, "best_checkpoint": best_step, "seed": config.seed,
                      "device": named_devices(run.spread.devices)}  # fmt: skip
            report.write(workdir, dataset, run.net, params, run.logits, errors, result)
        return errors


def _loop(run: Run) -> tuple[Errors, PyTree, int | None]:
    """Errors, parameters on this host, and the step of the best checkpoint."""
    intervals, table = run.intervals, to_json(run.net.layers)
    checkpoints = Checkpoints(run.workdir / "checkpoints", keep=run.config.keep_checkpoints)
    state, first_step, seen, lowest = _start(run, checkpoints, table)
    log = _log(run, first_step)
    errors: Errors | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        stack.callback(log.close)
        if first_step == intervals.last:  # it had ended already
            return run.validate(state.params)[0], parallel.on_host(state.params), checkpoints.best_step()
        stop_requested = stack.enter_context(stop_requests(checkpoints))
        train_step, batches = with_input(
            run.step, run.config, run.dataset, run.spread, range(first_step, intervals.last)
        )
        for step, batch in enumerate(run.sent(batches), start=first_step + 1):
            state, metrics = train_step(state, batch)
            log.advance()
            seen.add(metrics)  # two steps at most, and their batches, are on the way
            if step == first_step + 1:
                seen.settle()
                log.restart_clock(step)
            due, stopping, error, better = intervals.due(step), stop_requested(step), math.inf, False
            if any(due) or stopping:
                seen.settle()
                _check_finite(seen, state.params, step, checkpoints)
            if due.log:
                log.train(step, {**seen.taken(), **_rate(run, step, state)})
            if due.evaluate:
                errors, more = run.validate(state.params)
                log.validation(step, {**_without_examples(errors), **more})
                error = errors.top1_error
                state = dataclasses.replace(state, opt_state=plateau_after(state.opt_state, error))
                better, lowest = error < lowest, min(lowest, error)
            if due.save or stopping or better:
                log.flush()
                checkpoints.save(step, state, table, {"sums": seen.sums, "lowest": lowest}, error)
                log.restart_clock(step)
            if stopping and step < intervals.last:
                stack.close()  # only now the checkpoint is known to be on disk
                if hosts.is_first_host():
                    say(f"stopped; the same command continues from step {step} of {intervals.last}")
                raise KeyboardInterrupt
        assert errors  # of the last step
        return errors, parallel.on_host(state.params), checkpoints.best_step()


def _start(run: Run, checkpoints: Checkpoints, table: Written) -> tuple[TrainState, int, StepMetrics, float]:
    """The state on the devices, its step, what was summed up for the log, and the lowest error so far: those of the
    last checkpoint, or of the beginning.
    """
    fresh = init_state(run.net, run.optimizer, image_size=run.config.crop_size, seed=run.config.seed)
    fresh = dataclasses.replace(fresh, params=run.origin.into(fresh.params))
    state, kept = checkpoints.restore_latest(fresh, table) or (fresh, {})
    first_step, last = int(state.step), run.intervals.last
    hosts.check_same("the checkpoint that they found", str(first_step))
    if first_step and hosts.is_first_host():
        say(f"continuing from the checkpoint of step {first_step} of {last} in {run.workdir}")
    return run.spread.put(state), first_step, StepMetrics(kept.get("sums")), kept.get("lowest", 2.0)


def _log(run: Run, first_step: int) -> RunLog:
    if not hosts.is_first_host():
        return SilentLog()
    return RunLog(
        run.workdir, first_step=first_step, steps=run.intervals.last, steps_per_epoch=float(run.steps_per_epoch),
        batch_size=run.config.batch_size,
    )  # fmt: skip


def _rate(run: Run, step: int, state: TrainState) -> dict[str, float]:
    """The learning rate of a step, where it is the paper's rule's; and what a plateau multiplies it by."""
    scales = [float(of.scale) for of in plateaus(state.opt_state)[:1]]
    if run.rate is None:
        return {"rate_scale": scales[0]} if scales else {}
    return {"learning_rate": float(run.rate(step - 1) * math.prod(scales))}


def _without_examples(errors: Errors) -> dict[str, Any]:
    return {name: value for name, value in errors._asdict().items() if name != "examples"}


def _check_finite(seen: StepMetrics, params: PyTree, step: int, checkpoints: Checkpoints) -> None:
    """Raises InputError where a loss up to that of `step`, or a parameter after it is not finite."""
    found = np.isfinite(seen.losses)
    if found.all() and _all_finite(params):
        seen.losses.clear()
        return
    what, where = ("a parameter", step) if found.all() else ("the loss", step - len(found) + 1 + int(np.argmin(found)))
    raise InputError(
        f"{what} is not finite at step {where}; the last good checkpoint is that of step "
        f"{checkpoints.latest_step() or 'none'}; in another --workdir try a lower "
        "--learning_rate, or --debug_nans to see where it comes from"
    )


@jax.jit
def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def with_input(
    step: Callable, config: Config, dataset: Dataset, spread: Spread, steps: range
) -> tuple[Callable, Iterator]:
    """The training step, compiled for all devices, and the batches of these steps as it takes them: images, or with
    --cache=device the numbers of images that lie there.
    """
    rows = spread.rows(config.batch_size)
    if config.cache == "none":
        batches = input_pipeline.training_batches(dataset, config.batch_size, config.seed, steps, rows)
        return spread.step(step, donate_state=True), batches
    cache = spread.put(input_pipeline.whole_split(dataset, "train"))

    def gather_and_step(state: TrainState, indices: Array, cache: Batch) -> tuple[TrainState, dict[str, Array]]:
        return step(state, jax.tree.map(lambda images: images[indices], cache))

    cached_step = spread.step(gather_and_step, donate_state=True, shared=1)
    indices = input_pipeline.training_indices(dataset, config.batch_size, config.seed, steps, rows)
    return lambda state, numbers: cached_step(state, numbers, cache), indices
