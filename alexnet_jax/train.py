"""§5: a whole run: set up, loop, finish."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from alexnet_jax.config import LARGEST, Config, InputError, Intervals, wrong_with_place
from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.data.input_pipeline import Batch, with_timeout
from alexnet_jax.device import parallel
from alexnet_jax.device.tuned import missing_forms, tuned, tuned_augmentation
from alexnet_jax.device.xla import kept
from alexnet_jax.networks import transfer
from alexnet_jax.paper.evaluate import Errors, evaluate, make_evaluation_step, make_logits
from alexnet_jax.paper.model import AlexNet, configured_network, summary
from alexnet_jax.paper.optim import configured_rule, learning_rates, plateau_after, plateaus, with_plateau
from alexnet_jax.paper.table import Layers
from alexnet_jax.paper.train_state import TrainState, init_state, shapes_of_params
from alexnet_jax.paper.train_step import Augment, Seen, make_train_step
from alexnet_jax.paper.written import Written, to_json
from alexnet_jax.runs import report, workdir as folders
from alexnet_jax.runs.checkpoint import Checkpoints, stop_requests
from alexnet_jax.runs.log import FIELDS, RunLog, SilentLog, StepMetrics
from alexnet_jax.shown import say


@dataclasses.dataclass(frozen=True)
class Metrics:
    """More numbers to be logged, by name.

    of_step: one number of what a training step has seen; logged is its mean over the steps since the line before.
    of_evaluation: (logits, labels) → one an image; logged is its mean over the validation split.

    Raises InputError for a name that the log has already.
    """

    of_step: Mapping[str, Callable[[Seen], Array]] = dataclasses.field(default_factory=dict)
    of_evaluation: Mapping[str, Callable[[Array, Array], Array]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in {*self.of_step, *self.of_evaluation} & {*FIELDS}:
            raise InputError(f"the metric {name} needs another name: the log has one of its own")


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
    workdir = Path(workdir).expanduser()
    with contextlib.ExitStack() as held:
        run = _set_up(layers, dataset, config, workdir, optimizer, augment, metrics or Metrics(), devices, held)
        errors, params, best_step = _loop(run)
        if parallel.is_first_host():
            result = {"steps": run.intervals.last, "best_checkpoint": best_step, "seed": config.seed,
                      "device": _named(run.devices)}  # fmt: skip
            report.write(workdir, dataset, run.net, params, run.logits, errors, result)
        return errors


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the loop needs."""

    config: Config
    workdir: Path
    devices: Sequence[jax.Device]
    dataset: Dataset
    net: AlexNet
    origin: transfer.Origin
    optimizer: optax.GradientTransformation
    rate: Callable[[int], Array] | None
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    logits: Callable[[PyTree, Array], Array]
    evaluation_step: Callable[[PyTree, Batch], dict[str, Array]]
    steps_per_epoch: Fraction
    intervals: Intervals

    @property
    def rows(self) -> range:
        """Of each batch, those of this host."""
        return parallel.own_rows(self.config.batch_size, self.devices)

    def sent(self, batches: Iterator) -> Iterator:
        """To the devices, ahead of their use; with an error where they do not come."""
        timely = with_timeout(batches, self.config.stall_timeout, str(self.dataset.path))
        return parallel.shard_ahead(timely, self.devices)

    def validate(self, params: PyTree) -> tuple[Errors, dict[str, float]]:
        """On the whole validation split."""
        batches = input_pipeline.evaluation_batches(
            self.dataset, "validation", batch_size=self.config.batch_size, rows=self.rows
        )
        return evaluate(self.evaluation_step, params, self.sent(batches), len(self.dataset.splits["validation"]))


def _set_up(
    layers: Layers,
    dataset: Dataset,
    config: Config,
    workdir: Path,
    optimizer: optax.GradientTransformation | None,
    augment: Augment | None,
    metrics: Metrics,
    devices: Sequence[jax.Device] | None,
    held: contextlib.ExitStack,
) -> _Run:
    """held: what keeps other processes from this folder, until the end of the run."""
    devices = devices or parallel.all_devices()
    if optimizer and config.frozen_layers:
        raise InputError(
            f"--frozen_layers={','.join(config.frozen_layers)}: is of the paper's rule, not of another one"
        )
    parameters = _check(layers, dataset, config, devices)
    own = tuple(name for name, of in (("optimizer", optimizer), ("augment", augment)) if of is not None)
    net = configured_network(tuned(layers, devices), config)
    origin = transfer.find_origin(config, workdir, net, dataset)
    _claim(layers, dataset, config, workdir, origin, own, f"{parameters:,} parameters", devices, held)

    steps_per_epoch = Fraction(len(dataset.splits["train"]), config.batch_size)
    mean_image = jnp.asarray(dataset.statistics.mean_image, jnp.float32)
    rate = None if optimizer else learning_rates(config, float(steps_per_epoch), origin.taken)["kernel"]
    optimizer = optimizer or configured_rule(config, float(steps_per_epoch), origin.taken)
    has_plateau = plateaus(jax.eval_shape(optimizer.init, shapes_of_params(net, config.crop_size)))
    if config.plateau_patience and not has_plateau:
        optimizer = with_plateau(optimizer, config.plateau_patience)
    if augment:
        augment = kept(augment, devices)
    else:
        augment = tuned_augmentation(config, dataset.statistics, float(steps_per_epoch), devices)
    axis = parallel.axis_of(devices)
    step = make_train_step(net, optimizer, augment, seed=config.seed, axis_name=axis, metrics=metrics.of_step)
    logits = make_logits(net.apply, mean_image, config.crop_size)
    evaluation_step = make_evaluation_step(logits, axis_name=axis, metrics=metrics.of_evaluation)
    return _Run(
        config, workdir, devices, dataset, net, origin, optimizer, rate, step, logits,
        parallel.pmap_step(evaluation_step, devices), steps_per_epoch, Intervals.of(config, steps_per_epoch),
    )  # fmt: skip


def _check(layers: Layers, dataset: Dataset, config: Config, devices: Sequence[jax.Device]) -> int:
    """The number of parameters. Raises InputError where the network cannot be trained so."""
    if config.batch_size % len(devices):
        raise InputError(f"--batch_size={config.batch_size}: the {len(devices)} devices do not divide it")
    images = len(dataset.splits["train"])
    if config.batch_size > images:
        raise InputError(f"--batch_size={config.batch_size}: more than the {images} training images of {dataset.path}")
    if config.crop_size > dataset.size:
        raise InputError(f"--crop_size={config.crop_size}: the images of {dataset.path} have {dataset.size} pixels")
    if config.epochs * images / config.batch_size > LARGEST:
        raise InputError(f"--epochs={config.epochs}: are more than {LARGEST} steps")
    if layers[-1].features < len(dataset.class_names):
        raise InputError(
            f"the network has {layers[-1].features} outputs, and {dataset.path} has {len(dataset.class_names)} classes"
        )
    if config.cache == "device":
        needed, free = images * dataset.size**2 * 3 / 1e9, parallel.free_memory(devices) / 1e9
        if needed > min(config.cache_budget, free):
            room = f"--cache_budget={config.cache_budget:g}" if needed > config.cache_budget else f"{free:.1f} GB free"
            raise InputError(f"--cache=device: the training images take {needed:.1f} GB on each device, of {room}")
    try:
        return sum(row.parameters for row in summary(layers, config.crop_size))
    except ValueError as error:
        raise InputError(f"--crop_size={config.crop_size}: {error}") from error


def _hold(workdir: Path, held: contextlib.ExitStack) -> None:
    """One host does it for all."""
    refused: InputError | None = None
    if parallel.is_first_host():
        try:
            held.enter_context(folders.held(workdir))
        except InputError as error:
            refused = error
    parallel.fail_together(refused)


def _claim(
    layers: Layers,
    dataset: Dataset,
    config: Config,
    workdir: Path,
    origin: transfer.Origin,
    own: tuple[str, ...],
    size: str,
    devices: Sequence[jax.Device],
    held: contextlib.ExitStack,
) -> None:
    """The folder is this run's, on all hosts, from here on; and no other process's, until `held` ends."""
    try:
        run = folders.Run(config, to_json(layers), dataset.name, dataset.fingerprint(), own)
    except ValueError as error:
        raise InputError(f"the network cannot be written down: {error}") from error
    _hold(workdir, held)
    if parallel.is_first_host():
        folders.claim(workdir, run)
        folders.keep_facts(workdir, dataset)
        origin.keep(workdir)
        images = f"{len(dataset.splits['train']):,} training images, {len(dataset.class_names)} classes"
        say(f"{size}; {dataset.path}: {images}; {_named(devices)}")
        if slower := missing_forms(devices):
            say(slower)
    parallel.wait_for_all("claimed")
    if not parallel.is_first_host():
        folders.claim(workdir, run, exists=True)
    parallel.check_same("their flags", repr(dataclasses.replace(run, dataset="")))


def _named(devices: Sequence[jax.Device]) -> str:
    return f"{len(devices)} × {devices[0].device_kind}"


def _loop(run: _Run) -> tuple[Errors, PyTree, int | None]:
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
            return run.validate(state.params)[0], jax.device_get(state.params), checkpoints.best_step()
        stop_requested = stack.enter_context(stop_requests(checkpoints))
        train_step, batches = with_input(
            run.step, run.config, run.dataset, run.devices, range(first_step, intervals.last)
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
                if parallel.is_first_host():
                    say(f"stopped; the same command continues from step {step} of {intervals.last}")
                raise KeyboardInterrupt
        assert errors  # of the last step
        return errors, jax.device_get(state.params), checkpoints.best_step()


def _start(run: _Run, checkpoints: Checkpoints, table: Written) -> tuple[TrainState, int, StepMetrics, float]:
    """The state on the devices, its step, what was summed up for the log, and the lowest error so far: those of the
    last checkpoint, or of the beginning.
    """
    fresh = init_state(run.net, run.optimizer, image_size=run.config.crop_size, seed=run.config.seed)
    fresh = dataclasses.replace(fresh, params=run.origin.into(fresh.params))
    state, kept = checkpoints.restore_latest(fresh, table) or (fresh, {})
    first_step, last = int(state.step), run.intervals.last
    parallel.check_same("the checkpoint that they found", str(first_step))
    if first_step and parallel.is_first_host():
        say(f"continuing from the checkpoint of step {first_step} of {last} in {run.workdir}")
    return parallel.replicate(state, run.devices), first_step, StepMetrics(kept.get("sums")), kept.get("lowest", 2.0)


def _log(run: _Run, first_step: int) -> RunLog:
    if not parallel.is_first_host():
        return SilentLog()
    return RunLog(
        run.workdir, first_step=first_step, steps=run.intervals.last, steps_per_epoch=float(run.steps_per_epoch),
        batch_size=run.config.batch_size,
    )  # fmt: skip


def _rate(run: _Run, step: int, state: TrainState) -> dict[str, float]:
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
    step: Callable, config: Config, dataset: Dataset, devices: Sequence[jax.Device], steps: range
) -> tuple[Callable, Iterator]:
    """The training step, compiled for all devices, and the batches of these steps as it takes them: images, or with
    --cache=device the numbers of images that lie there.
    """
    rows = parallel.own_rows(config.batch_size, devices)
    if config.cache == "none":
        batches = input_pipeline.training_batches(dataset, config.batch_size, config.seed, steps, rows)
        return parallel.pmap_step(step, devices, donate_state=True), batches
    cache = parallel.replicate(input_pipeline.whole_split(dataset, "train"), devices)

    def gather_and_step(state: TrainState, indices: Array, cache: Batch) -> tuple[TrainState, dict[str, Array]]:
        return step(state, jax.tree.map(lambda images: images[indices], cache))

    cached_step = parallel.pmap_step(gather_and_step, devices, donate_state=True, shared=1)
    indices = input_pipeline.training_indices(dataset, config.batch_size, config.seed, steps, rows)
    return lambda state, numbers: cached_step(state, numbers, cache), indices
