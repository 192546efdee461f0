"""A run before its first step: whether it can be run, whose folder it has, and all that its loop needs."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from alexnet_jax.config import Config
from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.data.input_pipeline import Batch, with_timeout
from alexnet_jax.device import hosts, parallel
from alexnet_jax.device.spread import Spread, spread_over
from alexnet_jax.device.tuned import missing_forms, tuned, tuned_augmentation
from alexnet_jax.device.xla import kept
from alexnet_jax.networks import transfer
from alexnet_jax.options import LARGEST, InputError, in_steps
from alexnet_jax.paper.evaluate import Errors, evaluate, make_evaluation_step, make_logits
from alexnet_jax.paper.model import AlexNet, configured_network, summary
from alexnet_jax.paper.optim import configured_rule, learning_rates, plateaus, with_plateau
from alexnet_jax.paper.table import Layers
from alexnet_jax.paper.train_state import TrainState, shapes_of_params
from alexnet_jax.paper.train_step import Augment, Seen, make_train_step
from alexnet_jax.paper.written import to_json
from alexnet_jax.runs import workdir as folders
from alexnet_jax.runs.log import FIELDS
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


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    evaluate: bool
    save: bool


@dataclasses.dataclass(frozen=True)
class Intervals:
    """When a run logs, evaluates and saves, in steps; after its last step it does all three."""

    log: Fraction
    evaluate: Fraction
    checkpoint: Fraction
    last: int

    @classmethod
    def of(cls, config: Config, steps_per_epoch: Fraction) -> "Intervals":
        """Those of a run of this config."""
        texts = (config.log_every, config.evaluate_every, config.checkpoint_every)
        last = max(1, round(config.epochs * float(steps_per_epoch)))
        log, evaluate, checkpoint = (in_steps(text, steps_per_epoch) for text in texts)
        return cls(log, evaluate, checkpoint, last)

    def due(self, step: int) -> Due:
        """Each where a multiple of its interval has been done for the first time."""
        every = (self.log, self.evaluate, self.checkpoint)
        return Due(*(step == self.last or step // of > (step - 1) // of for of in every))


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop needs."""

    config: Config
    workdir: Path
    spread: Spread
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
        return self.spread.rows(self.config.batch_size)

    def sent(self, batches: Iterator) -> Iterator:
        """To the devices, ahead of their use; with an error where they do not come."""
        timely = with_timeout(batches, self.config.stall_timeout, str(self.dataset.path))
        return self.spread.sent(timely)

    def validate(self, params: PyTree) -> tuple[Errors, dict[str, float]]:
        """On the whole validation split."""
        batches = input_pipeline.evaluation_batches(
            self.dataset, "validation", batch_size=self.config.batch_size, rows=self.rows
        )
        return evaluate(self.evaluation_step, params, self.sent(batches), len(self.dataset.splits["validation"]))


def set_up(
    layers: Layers,
    dataset: Dataset,
    config: Config,
    workdir: Path,
    optimizer: optax.GradientTransformation | None,
    augment: Augment | None,
    metrics: Metrics,
    devices: Sequence[jax.Device] | None,
    held: contextlib.ExitStack,
) -> Run:
    """held: what keeps other processes from this folder, until the end of the run."""
    devices = devices or parallel.all_devices()
    if optimizer and config.frozen_layers:
        raise InputError(
            f"--frozen_layers={','.join(config.frozen_layers)}: is of the paper's rule, not of another one"
        )
    parameters = _check(layers, dataset, config, devices)
    spread = spread_over(devices, layers, config)
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
    on_all = net.clone(layers=spread.layers(net.layers))
    step = make_train_step(
        on_all, optimizer, spread.augmentation(augment), seed=config.seed, axis_name=spread.axis,
        mean_gradients=spread.mean_gradients, metrics=metrics.of_step,
    )  # fmt: skip
    logits, logits_on_all = (make_logits(of.apply, mean_image, config.crop_size) for of in (net, on_all))
    evaluation_step = make_evaluation_step(logits_on_all, axis_name=spread.axis, metrics=metrics.of_evaluation)
    return Run(
        config, workdir, spread, dataset, net, origin, optimizer, rate, step, logits,
        spread.step(evaluation_step), steps_per_epoch, Intervals.of(config, steps_per_epoch),
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
    if hosts.is_first_host():
        try:
            held.enter_context(folders.held(workdir))
        except InputError as error:
            refused = error
    hosts.fail_together(refused)


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
    if hosts.is_first_host():
        folders.claim(workdir, run)
        folders.keep_facts(workdir, dataset)
        origin.keep(workdir)
        images = f"{len(dataset.splits['train']):,} training images, {len(dataset.class_names)} classes"
        say(f"{size}; {dataset.path}: {images}; {named_devices(devices)}")
        if slower := missing_forms(devices):
            say(slower)
    hosts.wait_for_all("claimed")
    if not hosts.is_first_host():
        folders.claim(workdir, run, exists=True)
    hosts.check_same("their flags", repr(dataclasses.replace(run, dataset="")))


def named_devices(devices: Sequence[jax.Device]) -> str:
    """As the log and result.json name them: "4 × cpu"."""
    return f"{len(devices)} × {devices[0].device_kind}"
