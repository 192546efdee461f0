"""§5: the training step, and the loop around it."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from alexnet_jax.config import Config, InputError, in_steps, is_due
from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import Dataset, open_dataset
from alexnet_jax.data.input_pipeline import Batch, timely
from alexnet_jax.device import parallel
from alexnet_jax.device.xla import on_its_own
from alexnet_jax.networks import transfer as pretraining
from alexnet_jax.paper import model, optim
from alexnet_jax.paper.architectures import ARCHITECTURES, Layers, image_size, with_classes
from alexnet_jax.paper.augment import split_each, training_views
from alexnet_jax.paper.evaluate import Errors, evaluate, make_evaluation_step, make_logits
from alexnet_jax.paper.train_state import TrainState as TrainState
from alexnet_jax.paper.train_state import init_state as init_state
from alexnet_jax.paper.train_state import no_sums
from alexnet_jax.runs import checkpoint, report
from alexnet_jax.runs import log as runlog


def make_train_step(
    net: model.AlexNet,
    optimizer: optax.GradientTransformationExtraArgs,
    mean_image: Float[Array, "size size 3"],
    pca: Float[Array, "3 3"],
    config: Config,
    steps_per_epoch: float,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The step (state, batch) → (state, {"loss", "top1_error"}), for `parallel.pmap_step`.

    Augmentation, network, cross-entropy (nats, mean over the batch), gradients, update. What is random is a
    function of (seed, step, place in the global batch). The metrics are those of the augmented images, with
    dropout.
    """
    _, random_key = jax.random.split(jax.random.key(config.seed))
    augment = functools.partial(
        training_views, mean_image=mean_image, pca=pca, size=config.crop_size, reflect=config.reflect,
        crop_to_edge=config.crop_to_edge, center_mean=config.center_mean, color_rescale=config.color_rescale,
    )  # fmt: skip

    def color_scale(step: Array) -> float | Array:
        if not config.color_off_from:
            return config.color_scale
        return jnp.where(step < round(config.color_off_from * steps_per_epoch), config.color_scale, 0.0)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key, images = jax.random.fold_in(random_key, state.step), jnp.asarray(batch.images)
        augment_keys, dropout_keys = split_each(parallel.image_keys(key, len(images)), 2)
        chunk_keys, _ = split_each(parallel.image_keys(key, len(images), chunk=config.crop_chunk), 2)
        # Else the gradient of the first kernel would augment them again, in an order that suits it.
        views = on_its_own(
            lambda images: augment(augment_keys, images, chunk_key=chunk_keys, color_scale=color_scale(state.step)),
            images,
        )

        def loss(params: PyTree) -> tuple[Array, Array]:
            logits = jnp.asarray(net.apply({"params": params}, views, train=True, key=dropout_keys))
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean(), logits

        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        top1_error = jnp.mean(logits.argmax(-1) != batch.labels)
        gradients, metrics = parallel.mean((gradients, {"loss": value, "top1_error": top1_error}))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, rate_scale=state.plateau.scale)
        params = optax.apply_updates(state.params, updates)
        sums = jax.tree.map(jnp.add, state.sums, {**metrics, "steps": jnp.float32(1)})
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, sums=sums), metrics

    return train_step


def train_and_evaluate(config: Config, workdir: str | Path, *, devices: Sequence[jax.Device] | None = None) -> Errors:
    """A whole run in `workdir`, or the rest of one that was stopped there; returns its errors on the validation split.

    Leaves config.json, data.npz, metrics.jsonl, tensorboard/, checkpoints/, figures/ and result.json. Raises
    InputError, before anything starts, where the config cannot be run.

    devices: over which to spread each batch; by default all, of all hosts.
    """
    workdir = Path(workdir).expanduser()
    devices = devices or parallel.all_devices()
    if config.batch_size % len(devices):
        raise InputError(f"--batch_size={config.batch_size}: the {len(devices)} devices do not divide it")
    if config.architecture not in ARCHITECTURES:
        raise InputError(f"--architecture={config.architecture}: unknown; there are {', '.join(ARCHITECTURES)}")
    config = dataclasses.replace(config, crop_size=config.crop_size or image_size(config.architecture))
    dataset = open_dataset(config.dataset)
    layers, parameters = _table(config, dataset)
    images = len(dataset.splits["train"])
    if config.batch_size > images:
        raise InputError(f"--batch_size={config.batch_size}: more than the {images} training images of {dataset.path}")
    if config.cache == "device":
        needed, free = images * dataset.size**2 * 3 / 1e9, parallel.free_memory(devices) / 1e9
        if needed > min(config.cache_budget, free):
            room = f"--cache_budget={config.cache_budget:g}" if needed > config.cache_budget else f"{free:.1f} GB free"
            raise InputError(f"--cache=device: the training images take {needed:.1f} GB on each device, of {room}")
    net = model.AlexNet(layers, jnp.dtype(config.precision))
    origin = pretraining.find_origin(config, workdir, net, dataset)
    if parallel.is_first_host():
        runlog.claim_workdir(workdir, config, dataset.fingerprint())
        runlog.keep_facts(workdir, dataset)
        origin.keep(workdir)
        print(
            f"{config.architecture}: {parameters:,} parameters; {dataset.path}: {images:,} training images, "
            f"{len(dataset.class_names)} classes; {_named(devices)}",
            flush=True,
        )
    parallel.wait_for_all("claimed")
    if not parallel.is_first_host():
        runlog.claim_workdir(workdir, config, dataset.fingerprint(), exists=True)
    parallel.check_same("their flags", repr(dataclasses.replace(config, dataset="")))
    return _run(config, workdir, devices, dataset, net, origin)


def _named(devices: Sequence[jax.Device]) -> str:
    return f"{len(devices)} × {devices[0].device_kind}"


def _table(config: Config, dataset: Dataset) -> tuple[Layers, int]:
    """The architecture with its last layer fitted to the data set, and its number of parameters."""
    classes = len(dataset.class_names)
    if config.num_classes and config.num_classes < classes:
        raise InputError(f"--num_classes={config.num_classes}: {dataset.path} has {classes} classes")
    if config.crop_size > dataset.size:
        raise InputError(f"--crop_size={config.crop_size}: the images of {dataset.path} have {dataset.size} pixels")
    layers = with_classes(ARCHITECTURES[config.architecture], config.num_classes or classes)
    try:
        return layers, sum(row.parameters for row in model.summary(layers, config.crop_size))
    except ValueError as error:
        raise InputError(f"--architecture={config.architecture} --crop_size={config.crop_size}: {error}") from error


def _run(
    config: Config,
    workdir: Path,
    devices: Sequence[jax.Device],
    dataset: Dataset,
    net: model.AlexNet,
    origin: pretraining.Origin,
) -> Errors:
    steps_per_epoch = Fraction(len(dataset.splits["train"]), config.batch_size)
    steps = max(1, round(config.epochs * float(steps_per_epoch)))
    log_every, evaluate_every, checkpoint_every = (
        in_steps(interval, steps_per_epoch)
        for interval in (config.log_every, config.evaluate_every, config.checkpoint_every)
    )
    rates = optim.learning_rates(config, float(steps_per_epoch), origin.taken)
    optimizer = optim.of_config(config, float(steps_per_epoch), taken=origin.taken)
    mean_image = jnp.asarray(dataset.statistics.mean_image, jnp.float32)
    pca = jnp.asarray(dataset.statistics.color_pca, jnp.float32)
    step_on_one = make_train_step(net, optimizer, mean_image, pca, config, float(steps_per_epoch))
    logits = make_logits(net.apply, mean_image, config.crop_size)
    evaluation_step = parallel.pmap_step(make_evaluation_step(logits), devices)
    rows = parallel.own_rows(config.batch_size, devices)

    def sent(batches: Iterator) -> Iterator:
        return parallel.shard_ahead(timely(batches, config.stall_timeout, str(dataset.path)), devices)

    def validate(params: PyTree) -> Errors:
        batches = input_pipeline.evaluation_batches(dataset, "validation", batch_size=config.batch_size, rows=rows)
        return evaluate(evaluation_step, params, sent(batches), len(dataset.splits["validation"]))

    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
    fresh = init_state(net, optimizer, crop_size=config.crop_size, seed=config.seed)
    fresh = dataclasses.replace(fresh, params=origin.into(fresh.params))
    first_step, state = checkpoints.restore_latest(fresh) or (0, fresh)
    parallel.check_same("the checkpoint that they found", str(first_step))
    state = parallel.replicate(state, devices)
    if first_step and parallel.is_first_host():
        print(f"continuing from the checkpoint of step {first_step} of {steps} in {workdir}", flush=True)
    log: runlog.RunLog | runlog.NoLog = runlog.NoLog()
    if parallel.is_first_host():
        log = runlog.RunLog(
            workdir, first_step=first_step, steps=steps, steps_per_epoch=float(steps_per_epoch),
            batch_size=config.batch_size,
        )  # fmt: skip
    errors: Errors | None = None
    losses: list[Array] = []  # not looked at yet
    batches: Iterator = iter(())
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        stack.callback(log.close)
        stop_requested = stack.enter_context(checkpoint.stop_requests(checkpoints))
        if first_step < steps:
            train_step, read = with_input(step_on_one, config, dataset, devices)
            batches = sent(read(dataset, config.batch_size, config.seed, range(first_step, steps), rows))
        for step, batch in enumerate(batches, start=first_step + 1):
            state, metrics = train_step(state, batch)
            log.advance()
            losses.append(metrics["loss"])
            if len(losses) > 1:
                jax.block_until_ready(losses[-2])  # two steps at most, and their batches, are on the way
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                log.restart_clock(step)
            last, stopping = step == steps, stop_requested(step)
            evaluating = last or is_due(step, evaluate_every)
            saving = last or stopping or is_due(step, checkpoint_every)
            logging = last or is_due(step, log_every)
            if logging or evaluating or saving:
                _check_finite(losses, state.params, step, checkpoints)
                losses = []
            if logging:
                sums, scale = jax.device_get((state.sums, state.plateau.scale))
                loss, top1_error = (float(sums[name] / sums["steps"]) for name in ("loss", "top1_error"))
                rate = float(rates["kernel"](step - 1) * scale)
                log.train(step, loss=loss, top1_error=top1_error, learning_rate=rate)
                state = dataclasses.replace(state, sums=parallel.replicate(no_sums(), devices))
            if evaluating:
                errors = validate(state.params)
                log.validation(step, errors)
                before = jax.device_get(state.plateau)
                plateau = optim.plateau_next(before, errors.top1_error, patience=config.plateau_patience)
                state = dataclasses.replace(state, plateau=parallel.replicate(plateau, devices))
                saving = saving or plateau.lowest < before.lowest
                log.restart_clock(step)
            if saving:
                log.flush()
                checkpoints.save(step, state, errors.top1_error if errors and evaluating else math.inf)
                log.restart_clock(step)
            if stopping and not last:
                stack.close()  # only now the checkpoint is known to be on disk
                if parallel.is_first_host():
                    print(f"stopped; the same command continues from step {step} of {steps}", flush=True)
                raise KeyboardInterrupt
        errors = errors or validate(state.params)  # a run that had ended already
        best_step = checkpoints.best_step()
    if parallel.is_first_host():
        result = {"steps": steps, "best_checkpoint": best_step, "seed": config.seed, "device": _named(devices)}
        report.write(workdir, dataset, net.layers, jax.device_get(state.params), logits, errors, result)
    return errors


def _check_finite(losses: list[Array], params: PyTree, step: int, checkpoints: checkpoint.Checkpoints) -> None:
    """Raises InputError where one of the last losses, up to that of `step`, or a parameter after it is not finite."""
    found = np.isfinite(jax.device_get(losses))
    if found.all() and _all_finite(params):
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
    step: Callable, config: Config, dataset: Dataset, devices: Sequence[jax.Device]
) -> tuple[Callable, Callable]:
    """The training step on all devices, and the function that gives its batches: images, or with --cache=device the
    numbers of images that lie there.
    """
    if config.cache == "none":
        return parallel.pmap_step(step, devices, donate_state=True), input_pipeline.training_batches
    cache = parallel.replicate(input_pipeline.whole_split(dataset, "train"), devices)

    def gather_and_step(state: TrainState, indices: Array, cache: Batch) -> tuple[TrainState, dict[str, Array]]:
        return step(state, jax.tree.map(lambda kept: kept[indices], cache))

    cached_step = parallel.pmap_step(gather_and_step, devices, donate_state=True, shared=1)
    return lambda state, indices: cached_step(state, indices, cache), input_pipeline.training_indices
