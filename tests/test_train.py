"""The loop, in this process, on a small network and data set."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
import threading
import time
import types
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CROP, SIZE, TINY, small_config, without_compilation_cache

from alexnet_jax import train, train_setup
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.data.input_pipeline import training_batches
from alexnet_jax.device import onednn, parallel
from alexnet_jax.networks.loading import load
from alexnet_jax.options import InputError, in_steps
from alexnet_jax.paper import evaluate, model
from alexnet_jax.paper.optim import PlateauState, papers_rule, with_plateau
from alexnet_jax.paper.table import with_classes
from alexnet_jax.paper.train_state import init_state
from alexnet_jax.paper.train_step import make_train_step, papers_augmentation
from alexnet_jax.runs import checkpoint, log as runlog
from alexnet_jax.train_setup import Intervals, Metrics

pytestmark = pytest.mark.usefixtures("quickly_compiled")
ONE, TWO = jax.devices()[:1], jax.devices()[:2]
CONFIG = small_config(learning_rate_drops=(3.0,), log_every=2)
DENSE = TINY[2:]  # compiles in a fraction of the time; where what the layers compute is not asked


@pytest.fixture(scope="module", autouse=True)
def without_figures():
    """They take longer than these runs; test_main looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.report, "write", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def dataset(prepared):
    return open_dataset(str(prepared))


@pytest.fixture(scope="module")
def run(dataset):
    """`fit` with CONFIG, and changes of it."""

    def fit(workdir, *, layers=DENSE, devices=ONE, optimizer=None, augment=None, metrics=None, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        own = {"optimizer": optimizer, "augment": augment, "metrics": metrics}
        return train.fit(layers, dataset, config, workdir, devices=devices, **own)

    return fit


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """The folder of a run that has ended, which others may look at: done once, whoever asks first."""

    @functools.cache
    def of(layers, number, onednns, changes):
        workdir = tmp_path_factory.mktemp("runs") / "run"
        run(workdir, layers=layers, devices=jax.devices()[:number], **dict(changes))
        return workdir

    def finished(devices=ONE, layers=DENSE, **changes):
        return of(layers, len(devices), not onednn.missing(), tuple(sorted(changes.items())))

    return finished


@pytest.fixture(params=["XLA", pytest.param("oneDNN", marks=pytest.mark.slow)])
def convolution(request):
    """Whose it is on the CPU."""
    with without_compilation_cache() if request.param == "oneDNN" else contextlib.nullcontext():
        if bool(onednn.missing()) == (request.param == "oneDNN"):
            pytest.skip("this jaxlib has no convolution of oneDNN")
        yield


def metrics(workdir, split="train"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def losses(workdir):
    return {line["step"]: line["loss"] for line in metrics(workdir)}


def final_params(workdir):
    return load(workdir).params


def test_it_learns(run, tmp_path):
    often = {"evaluate_every": "10epochs", "checkpoint_every": "10epochs"}
    errors = run(tmp_path, layers=TINY, epochs=30.0, learning_rate_drops=(), **often)
    assert errors.examples == 23
    assert errors.top1_error < 0.2
    assert losses(tmp_path)[2] > 2 * metrics(tmp_path, "validation")[-1]["nll"]


def test_two_devices_give_the_loss_curve_of_one(finished, convolution):
    workdirs = finished(ONE, TINY), finished(TWO, TINY)
    one, two = map(losses, workdirs)
    assert list(one) == list(two) == [2, 4, 6, 8, 10, 12]
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-4)
    params = map(final_params, workdirs)
    jax.tree.map(lambda first, second: np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5), *params)


class Stopped(Exception):
    pass


@contextlib.contextmanager
def stopping(number):
    """After so many steps."""
    batches = train.input_pipeline.training_batches

    def some(*arguments):
        for done, batch in enumerate(batches(*arguments)):
            if done == number:
                raise Stopped
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.input_pipeline, "training_batches", some)
        with contextlib.suppress(Stopped):
            yield
            raise AssertionError("it was over before it was stopped")


OF_2012 = {  # what the preset `original` sets, at epochs that this run has
    "crop_to_edge": True, "crop_chunk": 8, "center_mean": True, "color_rescale": True, "color_off_from": 2.0,
    "conv1_learning_rate_drops": (1.0,), "conv1_frozen_from": 2.5, "bias_learning_rate": 0.004, "decay_biases": False,
}  # fmt: skip
PLATEAU = {"learning_rate_drops": (), "plateau_patience": 2, "evaluate_every": 1}


@pytest.mark.parametrize(
    ("convolution", "layers", "stop_at", "changes"),
    [
        ("XLA", TINY, 3, {}), ("XLA", DENSE, 5, PLATEAU),
        pytest.param("oneDNN", TINY, 8, OF_2012, marks=pytest.mark.slow),
    ],
    indirect=["convolution"],
)  # fmt: skip
def test_a_continued_run_is_bit_for_bit_the_run_that_was_not_stopped(
    run, finished, tmp_path, convolution, layers, stop_at, changes
):
    with stopping(stop_at):
        run(tmp_path, layers=layers, checkpoint_every=2, **changes)
    run(tmp_path, layers=layers, checkpoint_every=2, **changes)
    whole = finished(layers=layers, **changes)
    assert losses(whole) == losses(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, final_params(whole), final_params(tmp_path))


def test_a_batch_is_sent_while_the_one_before_is_used():
    sent = []

    def batches():
        for number in range(4):
            sent.append(number)
            yield np.full((4, 1), number, np.float32)

    used = []
    for batch in parallel.shard_ahead(batches(), TWO):
        assert batch.shape == (2, 2, 1)
        used.append(float(batch[0, 0, 0]))
        assert sent == list(range(min(len(used) + 1, 4)))
    assert used == [0, 1, 2, 3]


@pytest.mark.parametrize(("devices", "changes"), [(ONE, {}), pytest.param(TWO, OF_2012, marks=pytest.mark.slow)])
def test_images_kept_on_the_devices_give_the_same_numbers(run, finished, tmp_path, devices, changes):
    run(tmp_path, layers=TINY, devices=devices, cache="device", **changes)
    read = finished(devices, TINY, **changes)
    assert losses(read) == losses(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, final_params(read), final_params(tmp_path))


@pytest.mark.slow
def test_in_bfloat16_the_losses_are_near_and_what_is_kept_is_float32(run, finished, tmp_path):
    run(tmp_path, layers=TINY, precision="bfloat16", epochs=1.0)
    workdirs = finished(layers=TINY, epochs=1.0), tmp_path
    for workdir in workdirs:
        assert {leaf.dtype for leaf in jax.tree.leaves(final_params(workdir))} == {np.dtype(np.float32)}
    in_float32, in_bfloat16 = ([*losses(workdir).values()] for workdir in workdirs)
    assert in_float32 != in_bfloat16
    np.testing.assert_allclose(in_bfloat16, in_float32, rtol=0.02)


def test_a_run_may_go_on_with_another_cache(run, finished, tmp_path):
    shutil.copytree(finished(), tmp_path / "run")
    assert run(tmp_path / "run", cache="device", cache_budget=1.0).examples == 23


def test_images_beyond_the_budget_are_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"--cache=device: the training images take 0.0 GB .* --cache_budget=0.0001"):
        run(tmp_path / "run", cache="device", cache_budget=1e-4)
    assert not (tmp_path / "run").exists()


def scales_after(evaluations, patience):
    """What the plateau rule has made of a rate of 1 once all these evaluations have been seen; one a step."""
    best, scale, since, found = 2.0, 1.0, 0, [1.0]
    for line in evaluations:
        since = 0 if line["top1_error"] < best else since + 1
        best = min(best, line["top1_error"])
        if since == patience:
            scale, since = max(scale / 10, 0.001), 0
        found.append(scale)
    return found


def test_the_rate_drops_when_the_validation_error_stops_improving(run, tmp_path):
    run(tmp_path, **{**PLATEAU, "log_every": 1, "epochs": 6.0})
    rates = [line["learning_rate"] for line in metrics(tmp_path)]
    *scales, last = scales_after(metrics(tmp_path, "validation"), patience=2)
    np.testing.assert_allclose(rates, 0.002 * np.array(scales), rtol=1e-5)
    assert last == pytest.approx(0.001)


def test_the_plateaus_scale_multiplies_the_move_of_every_parameter(dataset):
    (batch,) = training_batches(dataset, batch_size=16, seed=0, steps=range(1))
    step, state = step_and_state(dataset, ONE)
    moves = []
    for scale in (1.0, 0.1):
        copy = jax.tree.map(
            lambda of, scale=scale: of._replace(scale=of.scale * scale) if isinstance(of, PlateauState) else of,
            jax.tree.map(jnp.copy, state), is_leaf=lambda of: isinstance(of, PlateauState),
        )  # fmt: skip
        after = step(copy, parallel.shard(batch, ONE))[0].params
        moves.append(jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after, state.params))
    jax.tree.map(lambda whole, tenth: np.testing.assert_allclose(tenth, 0.1 * whole, atol=1e-6), *moves)
    assert np.abs(moves[0]["fc2"]["kernel"]).max() > 1e-4


@pytest.mark.slow
def test_two_devices_give_the_loss_curve_of_one_in_the_2012_form_too(finished):
    one, two = losses(finished(ONE, TINY, **OF_2012)), losses(finished(TWO, TINY, **OF_2012))
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "logged", "evaluated", "saved"),
    [  # 12 steps; an epoch is 50 / 16 = 3.125
        ({"log_every": 5, "evaluate_every": 4, "checkpoint_every": 7}, {5, 10}, [4, 8, 12], {7, 12}),
        ({"log_every": "1epoch", "evaluate_every": "2epochs", "checkpoint_every": 100}, {4, 7, 10}, [7, 12], {12}),
        ({"log_every": 3, "evaluate_every": 100, "checkpoint_every": "1.5epochs"}, {3, 6, 9}, [12], {5, 10, 12}),
        ({"log_every": "0.1epochs", "epochs": 0.1}, {1}, [1], {1}),
        ({"log_every": 100, "evaluate_every": "0.7epochs", "epochs": 1.0}, set(), [3], {3}),
    ],
)
def test_lines_evaluations_and_checkpoints_come_when_they_should(
    run, tmp_path, monkeypatch, changes, logged, evaluated, saved
):
    found = []
    save = checkpoint.Checkpoints.save
    monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda *args: (found.append(args[1]), save(*args)))
    # Always wrong in the same number of cases: the first evaluation is the best.
    errors = evaluate.Errors(0.5, 0.1, 1.0, 23)
    monkeypatch.setattr(train_setup, "evaluate", lambda *_: (errors, {}))
    run(tmp_path, **changes)
    saved = saved | {evaluated[0]}
    assert [line["step"] for line in metrics(tmp_path, "validation")] == evaluated
    assert found == sorted(saved)
    at = sorted(logged | {evaluated[-1]})
    assert [line["step"] for line in metrics(tmp_path)] == at
    assert [line["epoch"] for line in metrics(tmp_path)] == [step * 16 / 50 for step in at]
    rates = [line["learning_rate"] for line in metrics(tmp_path)]
    np.testing.assert_allclose(rates, [0.002 if step <= 9 else 0.0002 for step in at])  # drops after 3 epochs: 9 steps


GRADIENT_NORM = {"gradient_norm": lambda seen: optax.tree.norm(seen.gradients)}
CONFIDENCE = {"confidence": lambda logits, labels: jnp.max(jax.nn.softmax(logits), axis=1)}


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory):
    """A run that logs each step, with two numbers more."""
    workdir = tmp_path_factory.mktemp("runs") / "measured"
    run(workdir, log_every=1, metrics=Metrics(GRADIENT_NORM, CONFIDENCE))
    return workdir


def test_a_line_is_the_mean_over_the_steps_since_the_line_before(run, measured, tmp_path):
    run(tmp_path, log_every=5, metrics=Metrics(GRADIENT_NORM))
    for name in ("loss", "top1_error", "gradient_norm"):
        each, means = ([line[name] for line in metrics(workdir)] for workdir in (measured, tmp_path))
        assert means == pytest.approx([np.mean(each[:5]), np.mean(each[5:10]), np.mean(each[10:])], rel=1e-6)


def test_an_interval_is_exact_over_a_long_run():
    def due(interval, steps_per_epoch, steps):
        intervals = Intervals(in_steps(interval, steps_per_epoch), Fraction(7), Fraction(10**9), 10**7)
        return [step for step in steps if intervals.due(step).log]

    found = due("0.1epochs", Fraction(1281167, 128), range(1, 100_000))
    assert found == [-(-number * 1281167 // 1280) for number in range(1, len(found) + 1)]
    assert len(found) == 99
    assert due("4", Fraction(7), range(1, 20)) == [4, 8, 12, 16]
    assert due("1/3epoch", Fraction(1), range(1, 5)) == [1, 2, 3, 4]
    for interval in ("0", "-1", "epochs", "1.5", "1eposhs", "1epochss", "nan", "", "0epochs", "1/0epochs"):
        with pytest.raises(ValueError, match="must be"):
            in_steps(interval, Fraction(7))


def test_the_intervals_of_a_config():
    config = dataclasses.replace(CONFIG, log_every=5, evaluate_every="2epochs", checkpoint_every="1/2epoch", epochs=3.0)
    intervals = Intervals.of(config, Fraction(50, 16))
    assert intervals == Intervals(Fraction(5), Fraction(25, 4), Fraction(25, 16), 9)
    assert [step for step in range(1, 10) if intervals.due(step).log] == [5, 9]  # the last one in any case
    assert [step for step in range(1, 10) if intervals.due(step).evaluate] == [7, 9]
    assert [step for step in range(1, 10) if intervals.due(step).save] == [2, 4, 5, 7, 8, 9]
    assert Intervals.of(dataclasses.replace(config, epochs=0.001), Fraction(50, 16)).last == 1


def step_and_state(dataset, devices, layers=DENSE, **changes):
    net, optimizer = model.AlexNet(layers), papers_rule(0.001, patience=1)
    augment = papers_augmentation(small_config(**changes), dataset.statistics, 2.0)
    step = make_train_step(net, optimizer, augment, axis_name=parallel.axis_of(devices))
    state = parallel.replicate(init_state(net, optimizer, image_size=CROP), devices)
    return parallel.pmap_step(step, devices, donate_state=True), state


def losses_at(dataset, numbers, layers=DENSE, **changes):
    """Of the step after so many, each from the same parameters and batch."""
    (batch,) = training_batches(dataset, batch_size=16, seed=0, steps=range(1))
    step, state = step_and_state(dataset, ONE, layers, **changes)
    batch, found = parallel.shard(batch, ONE), []
    for number in numbers:
        copy = jax.tree.map(jnp.copy, state)  # the step donates it
        found.append(float(step(copy.replace(step=copy.step + number), batch)[1]["loss"]))
    return found


def test_what_is_random_is_drawn_anew_at_each_step(dataset):
    first, again, other = losses_at(dataset, [0, 0, 1])
    assert first == again != other


def test_the_color_stops_at_its_epoch(dataset):
    before, after = losses_at(dataset, [5, 6], color_rescale=True, color_off_from=3.0)  # epochs of 2 steps
    with_color = losses_at(dataset, [5, 6], color_rescale=True)
    (without,) = losses_at(dataset, [6], color_scale=0.0)
    assert [before, after] == pytest.approx([with_color[0], without], rel=1e-6)
    assert after != pytest.approx(with_color[1], rel=1e-6)


def test_each_setting_of_the_augmentation_reaches_the_step(dataset):
    found = {"none": losses_at(dataset, [1]), "reflect": losses_at(dataset, [1], reflect=False)}
    for name in ("crop_to_edge", "crop_chunk", "center_mean", "color_rescale"):
        found[name] = losses_at(dataset, [1], **{name: OF_2012[name]})
    assert len({loss for (loss,) in found.values()}) == 6, found


@pytest.mark.slow
def test_under_debug_nans_a_step_runs_operation_by_operation(dataset):
    """A fast stand-in for the command's own test of --debug_nans."""
    (expected,) = losses_at(dataset, [0], TINY)
    jax.config.update("jax_debug_nans", True)
    try:
        assert parallel.axis_of(TWO) is None
        (found,) = losses_at(dataset, [0], TINY)
    finally:
        jax.config.update("jax_debug_nans", False)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_biases_follow_their_own_rate_and_decay(run, tmp_path):
    def biases(name, **changes):
        # Two steps, after the first of which they are not 0.
        run(tmp_path / name, layers=TINY, epochs=0.64, weight_decay=0.1, **changes)
        return final_params(tmp_path / name)["conv2"]["bias"]

    plain, undecayed, doubled = biases("0"), biases("1", decay_biases=False), biases("2", bias_learning_rate=0.004)
    assert not np.array_equal(plain, undecayed)
    assert np.linalg.norm(doubled) == pytest.approx(2 * np.linalg.norm(plain), rel=0.1)


def test_the_frozen_layer_stays_and_the_others_move(run, tmp_path):
    run(tmp_path, layers=TINY, conv1_frozen_from=2.0, checkpoint_every=3, keep_checkpoints=9)
    two, four = (load(tmp_path, step).params for step in ("6", "12"))  # after so many epochs
    for name in two:
        for kind in two[name]:
            same = np.array_equal(two[name][kind], four[name][kind])
            assert same == (name == "conv1"), f"{name}/{kind}"


def test_a_step_compiles_once_and_donates_its_state(dataset):
    step, state = step_and_state(dataset, TWO)
    first = state
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    counts = []
    for batch in training_batches(dataset, batch_size=16, seed=0, steps=range(4)):
        before = len(compiled)
        state, _ = step(state, parallel.shard(batch, TWO))
        counts.append(len(compiled) - before)
    jax.monitoring.clear_event_listeners()
    assert counts[0] >= 1
    assert counts[1:] == [0, 0, 0]
    assert first.params["fc1"]["kernel"].is_deleted()
    assert int(state.step) == 4


# What a caller gives of their own


def by_hand(dataset, optimizer):
    """The parameters after the 12 steps of CONFIG: the step without the loop, compiled by `jit`."""
    net = model.AlexNet(DENSE)
    step = jax.jit(make_train_step(net, optimizer, papers_augmentation(CONFIG, dataset.statistics, 50 / 16)))
    state = init_state(net, optimizer, image_size=CROP)
    for batch in training_batches(dataset, batch_size=16, seed=0, steps=range(12)):
        state, _ = step(state, batch)
    return state.params


@pytest.mark.parametrize("rule", [optax.adamw(0.003), pytest.param(optax.lars(0.05), marks=pytest.mark.slow)])
@jax.numpy_dtype_promotion("standard")  # which optax's rules need
def test_an_optimizer_of_ones_own_is_used_as_it_is(run, dataset, tmp_path, rule):
    run(tmp_path, optimizer=rule, learning_rate=7.0, momentum=0.1, weight_decay=0.9)  # settings of the paper's rule
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5),
        final_params(tmp_path), by_hand(dataset, rule),
    )  # fmt: skip
    assert {key for line in metrics(tmp_path) for key in line} & {"learning_rate", "rate_scale"} == set()


def constant(size):
    """A rule that moves every number by so much at each step, whatever its gradient."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda update: jnp.full_like(update, size), updates))


@pytest.mark.parametrize(
    ("rule", "patience"), [(constant(-0.001), 2), (with_plateau(constant(-0.001), 3), 3)], ids=["plain", "wrapped"]
)
def test_the_plateau_rule_wraps_any_optimizer_once(run, tmp_path, rule, patience):
    first_bias = Metrics({"bias": lambda seen: seen.params["fc2"]["bias"][0]})
    run(tmp_path, **{**PLATEAU, "log_every": 1, "epochs": 3.0}, optimizer=rule, metrics=first_bias)
    lines = metrics(tmp_path)
    *scales, last = scales_after(metrics(tmp_path, "validation"), patience)
    assert last < 1
    np.testing.assert_allclose([line["rate_scale"] for line in lines], scales, rtol=1e-6)
    moves = np.diff([line["bias"] for line in lines])
    np.testing.assert_allclose(moves, -0.001 * np.array(scales[:-1]), rtol=1e-3)
    assert "learning_rate" not in lines[0]


def nothing_to_see(draws, images):
    return jnp.zeros((len(images), CROP, CROP, 3))


def noisy(draws, images):
    """Another noise for each image, as any number of devices draws it."""
    centers = images[:, (SIZE - CROP) // 2 :, (SIZE - CROP) // 2 :][:, :CROP, :CROP].astype(jnp.float32) - 100
    return centers + 30 * jax.vmap(lambda key: jax.random.normal(key, (CROP, CROP, 3)))(draws.keys())


def test_an_augmentation_of_ones_own_replaces_the_papers(run, finished, tmp_path):
    run(tmp_path / "nothing", augment=nothing_to_see, epochs=0.3)
    assert losses(tmp_path / "nothing") == {1: pytest.approx(math.log(3), rel=1e-6)}  # the biases are 0 at first
    for name, devices in (("one", ONE), ("two", TWO)):
        run(tmp_path / name, augment=noisy, devices=devices)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    np.testing.assert_allclose([*two.values()], [*one.values()], rtol=1e-4)
    assert one != losses(finished())


def test_more_numbers_are_logged_like_the_others(measured, dataset):
    lines, (*_, last) = metrics(measured), metrics(measured, "validation")
    of_a_line, of_steps = {"step", "epoch", "split"}, {"loss", "top1_error", "learning_rate", "images_per_second"}
    assert [{*line} for line in lines] == [of_a_line | of_steps | {"gradient_norm"}] * 12
    assert {*last} == of_a_line | {"top1_error", "top5_error", "nll", "confidence"}
    images = train.input_pipeline.whole_split(dataset, "validation").images
    expected = load(measured).probabilities(images).max(axis=1).mean()
    assert last["confidence"] == pytest.approx(float(expected), rel=1e-5)
    (events,) = (measured / "tensorboard").iterdir()
    for name in (b"train/gradient_norm", b"validation/confidence"):
        assert name in events.read_bytes()


def test_a_metric_of_the_gradients_sees_those_of_the_whole_batch(run, measured, tmp_path):
    run(tmp_path, devices=TWO, log_every=1, metrics=Metrics(GRADIENT_NORM))
    one, two = ([line["gradient_norm"] for line in metrics(workdir)] for workdir in (measured, tmp_path))
    np.testing.assert_allclose(two, one, rtol=1e-3)
    assert len({*one}) == 12


def test_a_run_goes_on_with_other_metrics(run, finished, tmp_path):
    with stopping(5):
        run(tmp_path, checkpoint_every=2, evaluate_every=100, log_every=5, metrics=Metrics(GRADIENT_NORM))
    other = Metrics({"largest": lambda seen: jnp.max(jnp.abs(seen.logits))}, CONFIDENCE)
    run(tmp_path, checkpoint_every=2, evaluate_every=100, log_every=5, metrics=other)
    first, *rest = metrics(tmp_path)
    # Four steps with the one and one with the other: each number is the mean of its own.
    assert {"gradient_norm", "largest"} < {*first}
    assert [{*line} & {"gradient_norm", "largest", "loss"} for line in rest] == [{"largest", "loss"}] * 2
    assert "confidence" in metrics(tmp_path, "validation")[-1]
    jax.tree.map(np.testing.assert_array_equal, final_params(finished()), final_params(tmp_path))


@pytest.mark.parametrize("name", ["loss", "step", "learning_rate"])
def test_a_metric_has_a_name_of_its_own(name):
    with pytest.raises(InputError, match=f"the metric {name} needs another name"):
        Metrics(of_step={name: lambda seen: 1.0})


def test_a_metric_is_one_number_or_one_an_image(run, tmp_path):
    with pytest.raises(ValueError, match=r"the metric logits is of shape \(16, 3\); it must be one number\n"):
        run(tmp_path / "one", metrics=Metrics(of_step={"logits": lambda seen: seen.logits}))
    with pytest.raises(ValueError, match=r"the metric norm is of shape \(\); it must be one number an image\n"):
        run(tmp_path / "other", metrics=Metrics(of_evaluation={"norm": lambda logits, labels: jnp.sum(logits)}))


@jax.numpy_dtype_promotion("standard")
def test_a_run_with_what_is_ones_own_goes_on_with_the_same_only(run, tmp_path):
    own = {"optimizer": optax.adamw(0.003), "augment": noisy, **PLATEAU}
    run(tmp_path / "whole", **own)
    workdir = tmp_path / "run"
    with stopping(5):
        run(workdir, checkpoint_every=2, **own)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    for others, message in (
        ({"optimizer": None}, r"\(optimizer was one's own, is the paper's\)"),
        ({"augment": None}, r"\(augment was one's own, is the paper's\)"),
        ({"optimizer": None, "augment": None}, "augment was one's own, is the paper's; optimizer was one's own"),
        ({"optimizer": optax.sgd(0.1)}, r"checkpoints/4: is of another optimizer: optimizer/state/\S+ is .* there,"),
    ):
        with pytest.raises(InputError, match=message):
            run(workdir, **{**own, **others})
    kept = {path: path.read_bytes() for path in before if "tensorboard" not in path.parts}
    assert kept == {path: before[path] for path in kept}
    run(workdir, checkpoint_every=2, **own)
    assert losses(workdir) == losses(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, final_params(workdir), final_params(tmp_path / "whole"))


def test_the_papers_run_does_not_go_on_with_ones_own(run, finished, tmp_path):
    shutil.copytree(finished(), tmp_path / "run")
    for name, own in (("optimizer", optax.sgd(0.1)), ("augment", noisy)):
        with pytest.raises(InputError, match=rf"\({name} was the paper's, is one's own\)"):
            run(tmp_path / "run", **{name: own})


# What goes wrong


def test_a_full_disk_is_told_and_keeps_the_checkpoint_before(run, finished, tmp_path, monkeypatch):
    usage = iter([10**9, 1000])  # bytes free at the first and at the second checkpoint
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=next(usage)))
    with pytest.raises(InputError, match="checkpoints: the checkpoint cannot be written"):
        run(tmp_path, checkpoint_every=4)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    monkeypatch.undo()  # now there is room
    run(tmp_path, checkpoint_every=4)
    assert losses(tmp_path) == losses(finished())
    jax.tree.map(np.testing.assert_array_equal, final_params(tmp_path), final_params(finished()))


def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path):
    message = "the loss is not finite at step 2; the last good checkpoint is that of step none; in another"
    with pytest.raises(InputError, match=message):
        run(tmp_path, learning_rate=1e30, evaluate_every=100, log_every=5)
    assert metrics(tmp_path) == []


def test_parameters_that_are_not_finite_are_not_saved(run, tmp_path):
    with pytest.raises(InputError, match="a parameter is not finite at step 1; the last good checkpoint is that of"):
        run(tmp_path, learning_rate=1e38, weight_decay=1000.0, checkpoint_every=1)
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_clock_that_goes_backwards_changes_nothing(run, finished, tmp_path, monkeypatch):
    forwards = finished()
    now = itertools.count(2e9, -1000)
    monkeypatch.setattr(time, "time", lambda: next(now))
    run(tmp_path)
    assert losses(forwards) == losses(tmp_path)
    saved = [sorted(os.listdir(workdir / "checkpoints")) for workdir in (forwards, tmp_path)]
    assert saved[0] == saved[1]


def test_a_data_set_that_vanishes_while_training_is_told(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "set")
    advance = runlog.RunLog.advance

    def advance_and_vanish(log):
        for shard in (tmp_path / "set").glob("images-train*"):
            os.truncate(shard, 0)
        advance(log)

    monkeypatch.setattr(runlog.RunLog, "advance", advance_and_vanish)
    config = dataclasses.replace(CONFIG, epochs=200.0)
    with pytest.raises(InputError, match=r"images-train.array_record-00000, record [0-9]+: cannot be read"):
        train.fit(TINY, open_dataset(str(tmp_path / "set")), config, tmp_path / "run", devices=ONE)


def test_a_read_that_hangs_ends_the_run(run, dataset, tmp_path, monkeypatch):
    def hanging(*_):
        yield from batches(dataset, 16, 0, range(2))
        threading.Event().wait(20)

    batches = train.input_pipeline.training_batches
    monkeypatch.setattr(train.input_pipeline, "training_batches", hanging)
    with pytest.raises(InputError, match=rf"{dataset.path}: no batch was read in 0.5 s \(--stall_timeout\)"):
        run(tmp_path, stall_timeout=0.5, evaluate_every=100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 15, "devices": TWO}, "--batch_size=15: the 2 devices do not divide it"),
        ({"batch_size": 64}, "--batch_size=64: more than the 50 training images"),
        ({"crop_size": 41}, "--crop_size=41: the images of .* have 40 pixels"),
        ({"crop_size": 8, "layers": TINY}, "--crop_size=8: conv2: 1×1 is smaller than a pooling window of 3"),
        ({"layers": with_classes(DENSE, 2)}, "the network has 2 outputs, and .* has 3 classes"),
        ({"optimizer": optax.sgd(0.1), "frozen_layers": ("fc1",)}, "--frozen_layers=fc1: is of the paper's rule"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(run, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_more_outputs_than_classes(run, tmp_path):
    assert run(tmp_path, layers=with_classes(DENSE, 7), epochs=0.5).examples == 23
    network = load(tmp_path)
    assert network.params["fc2"]["bias"].shape == (7,)
    assert network.class_names == ("red", "green", "blue", *(f"output {number}" for number in range(3, 7)))
