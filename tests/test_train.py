"""The loop, in this process, on a small network and data set."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import threading
import time
import types
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CROP, TINY, without_compilation_cache

from alexnet_jax import train
from alexnet_jax.config import Config, InputError, in_steps, is_due
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.data.input_pipeline import training_batches
from alexnet_jax.device import onednn, parallel
from alexnet_jax.paper import evaluate, model
from alexnet_jax.paper.architectures import ARCHITECTURES, with_classes
from alexnet_jax.paper.optim import learning_rates, sgd
from alexnet_jax.runs import checkpoint
from alexnet_jax.runs import log as runlog

ONE, TWO = jax.devices()[:1], jax.devices()[:2]
RATES = learning_rates(Config(), 1.0)


@pytest.fixture
def config(tiny, prepared):
    return Config(architecture="tiny", dataset=str(prepared), crop_size=CROP, batch_size=16, epochs=4.0,
                  learning_rate=0.002, learning_rate_drops=(3.0,), log_every=2)  # fmt: skip


@pytest.fixture(params=["XLA", pytest.param("oneDNN", marks=pytest.mark.slow)])
def convolution(request):
    """Whose it is on the CPU."""
    with without_compilation_cache() if request.param == "oneDNN" else contextlib.nullcontext():
        if onednn.has_convolution() != (request.param == "oneDNN"):
            pytest.skip("this jaxlib has no convolution of oneDNN")
        yield


def metrics(workdir, split="train"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def losses(workdir):
    return {line["step"]: line["loss"] for line in metrics(workdir)}


def final_params(workdir):
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    step = checkpoints.latest_step()
    state = parallel.replicate(train.init_state(model.AlexNet(TINY), sgd(RATES), crop_size=CROP, seed=0), ONE)
    state = checkpoints.restore(step, state)
    checkpoints.close()
    return state.params


def test_it_learns(config, tmp_path):
    config = dataclasses.replace(config, epochs=30.0, learning_rate_drops=())
    errors = train.train_and_evaluate(config, tmp_path, devices=ONE)
    assert errors.examples == 23
    assert errors.top1_error < 0.2
    assert losses(tmp_path)[2] > 2 * metrics(tmp_path, "validation")[-1]["nll"]


def test_two_devices_give_the_loss_curve_of_one(config, tmp_path, convolution):
    for name, devices in (("one", ONE), ("two", TWO)):
        train.train_and_evaluate(config, tmp_path / name, devices=devices)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) == [2, 4, 6, 8, 10, 12]
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-4)
    params = final_params(tmp_path / "one"), final_params(tmp_path / "two")
    jax.tree.map(lambda first, second: np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5), *params)


class Stopped(Exception):
    pass


OF_2012 = {  # what the preset `original` sets, at epochs that this run has
    "crop_to_edge": True, "crop_chunk": 8, "center_mean": True, "color_rescale": True, "color_off_from": 2.0,
    "conv1_learning_rate_drops": (1.0,), "conv1_frozen_from": 2.5, "bias_learning_rate": 0.004, "decay_biases": False,
}  # fmt: skip
PLATEAU = {"learning_rate_drops": (), "plateau_patience": 2, "evaluate_every": 1}


@pytest.mark.parametrize(
    ("convolution", "stop_at", "changes"),
    [("XLA", 3, {}), ("XLA", 5, PLATEAU), pytest.param("oneDNN", 8, OF_2012, marks=pytest.mark.slow)],
    indirect=["convolution"],
)  # fmt: skip
def test_a_continued_run_is_bit_for_bit_the_run_that_was_not_stopped(
    config, tmp_path, monkeypatch, convolution, stop_at, changes
):
    config = dataclasses.replace(config, checkpoint_every=2, **changes)
    train.train_and_evaluate(config, tmp_path / "whole", devices=ONE)

    batches = train.input_pipeline.training_batches

    def stopping(*arguments):
        for number, batch in enumerate(batches(*arguments)):
            if number == stop_at:
                raise Stopped
            yield batch

    monkeypatch.setattr(train.input_pipeline, "training_batches", stopping)
    with pytest.raises(Stopped):
        train.train_and_evaluate(config, tmp_path / "stopped", devices=ONE)
    monkeypatch.undo()
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    train.train_and_evaluate(config, tmp_path / "stopped", devices=ONE)

    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    whole, stopped = final_params(tmp_path / "whole"), final_params(tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, whole, stopped)


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


@pytest.mark.parametrize(("devices", "changes"), [(ONE, {}), (TWO, OF_2012)])
def test_images_kept_on_the_devices_give_the_same_numbers(config, tmp_path, devices, changes):
    config = dataclasses.replace(config, **changes)
    train.train_and_evaluate(config, tmp_path / "read", devices=devices)
    train.train_and_evaluate(dataclasses.replace(config, cache="device"), tmp_path / "kept", devices=devices)
    assert losses(tmp_path / "read") == losses(tmp_path / "kept")
    read, kept = final_params(tmp_path / "read"), final_params(tmp_path / "kept")
    jax.tree.map(np.testing.assert_array_equal, read, kept)


def test_in_bfloat16_the_losses_are_near_and_what_is_kept_is_float32(config, tmp_path):
    found = []
    for precision in ("float32", "bfloat16"):
        workdir = tmp_path / precision
        train.train_and_evaluate(dataclasses.replace(config, precision=precision, epochs=1.0), workdir, devices=ONE)
        found.append(list(losses(workdir).values()))
        assert {leaf.dtype for leaf in jax.tree.leaves(final_params(workdir))} == {np.dtype(np.float32)}
    assert found[0] != found[1]
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)


def test_a_run_may_go_on_with_another_cache(config, tmp_path):
    train.train_and_evaluate(config, tmp_path, devices=ONE)
    again = dataclasses.replace(config, cache="device", cache_budget=1.0)
    assert train.train_and_evaluate(again, tmp_path, devices=ONE).examples == 23


def test_images_beyond_the_budget_are_refused(config, tmp_path):
    config = dataclasses.replace(config, cache="device", cache_budget=1e-4)
    with pytest.raises(InputError, match=r"--cache=device: the training images take 0.0 GB .* --cache_budget=0.0001"):
        train.train_and_evaluate(config, tmp_path / "run", devices=ONE)
    assert not (tmp_path / "run").exists()


def test_the_rate_drops_when_the_validation_error_stops_improving(config, tmp_path):
    config = dataclasses.replace(config, **PLATEAU, log_every=1, epochs=6.0)
    train.train_and_evaluate(config, tmp_path, devices=ONE)
    rates = {line["step"]: line["learning_rate"] for line in metrics(tmp_path)}
    best, rate, since = 2.0, 0.002, 0
    for line in metrics(tmp_path, "validation"):
        assert rates[line["step"]] == pytest.approx(rate, rel=1e-5)
        since = 0 if line["top1_error"] < best else since + 1
        best = min(best, line["top1_error"])
        if since == 2:
            rate, since = max(rate / 10, 0.000002), 0
    assert rate == pytest.approx(0.000002)


def test_the_plateaus_scale_multiplies_the_move_of_every_parameter(prepared):
    (batch,) = training_batches(open_dataset(str(prepared)), batch_size=16, seed=0, steps=range(1))
    step, state = step_and_state(prepared, ONE)
    moves = []
    for scale in (1.0, 0.1):
        copy = jax.tree.map(jnp.copy, state)
        copy = copy.replace(plateau=copy.plateau._replace(scale=copy.plateau.scale * scale))
        after = step(copy, parallel.shard(batch, ONE))[0].params
        moves.append(jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after, state.params))
    jax.tree.map(lambda whole, tenth: np.testing.assert_allclose(tenth, 0.1 * whole, atol=1e-6), *moves)
    assert np.abs(moves[0]["fc4"]["kernel"]).max() > 1e-4


def test_two_devices_give_the_loss_curve_of_one_in_the_2012_form_too(config, tmp_path):
    for name, devices in (("one", ONE), ("two", TWO)):
        train.train_and_evaluate(dataclasses.replace(config, **OF_2012), tmp_path / name, devices=devices)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
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
    config, tmp_path, monkeypatch, changes, logged, evaluated, saved
):
    found = []
    save = checkpoint.Checkpoints.save
    monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda *args: (found.append(args[1]), save(*args)))
    # Always wrong in the same number of cases: the first evaluation is the best.
    errors = evaluate.Errors(0.5, 0.1, 1.0, 23)
    monkeypatch.setattr(train, "evaluate", lambda *_: errors)
    train.train_and_evaluate(dataclasses.replace(config, **changes), tmp_path, devices=ONE)
    saved = saved | {evaluated[0]}
    assert [line["step"] for line in metrics(tmp_path, "validation")] == evaluated
    assert found == sorted(saved)
    at = sorted(logged | {evaluated[-1]})
    assert [line["step"] for line in metrics(tmp_path)] == at
    assert [line["epoch"] for line in metrics(tmp_path)] == [step * 16 / 50 for step in at]
    rates = [line["learning_rate"] for line in metrics(tmp_path)]
    np.testing.assert_allclose(rates, [0.002 if step <= 9 else 0.0002 for step in at])  # drops after 3 epochs: 9 steps


def test_a_line_is_the_mean_over_the_steps_since_the_line_before(config, tmp_path):
    for every in (1, 5):
        train.train_and_evaluate(dataclasses.replace(config, log_every=every), tmp_path / str(every), devices=ONE)
    for name in ("loss", "top1_error"):
        each = [line[name] for line in metrics(tmp_path / "1")]
        means = [line[name] for line in metrics(tmp_path / "5")]
        assert means == pytest.approx([np.mean(each[:5]), np.mean(each[5:10]), np.mean(each[10:])], rel=1e-6)


def test_an_interval_is_exact_over_a_long_run():
    every = in_steps("0.1epochs", Fraction(1281167, 128))
    due = [step for step in range(1, 100_000) if is_due(step, every)]
    assert due == [-(-number * 1281167 // 1280) for number in range(1, len(due) + 1)]
    assert [step for step in range(1, 20) if is_due(step, in_steps("4", Fraction(7)))] == [4, 8, 12, 16]
    assert [step for step in range(1, 5) if is_due(step, Fraction(1, 3))] == [1, 2, 3, 4]
    for interval in ("0", "-1", "epochs", "1.5", "1eposhs", "1epochss", "nan", "", "0epochs", "1/0epochs"):
        with pytest.raises(ValueError, match="must be"):
            in_steps(interval, Fraction(7))


def step_and_state(prepared, devices, **changes):
    statistics = open_dataset(str(prepared)).statistics
    mean_image, pca = (jnp.asarray(x, jnp.float32) for x in (statistics.mean_image, statistics.color_pca))
    net, optimizer = model.AlexNet(TINY), sgd(0.001)
    step = train.make_train_step(net, optimizer, mean_image, pca, Config(crop_size=CROP, **changes), 2.0)
    state = parallel.replicate(train.init_state(net, optimizer, crop_size=CROP, seed=0), devices)
    return parallel.pmap_step(step, devices, donate_state=True), state


def losses_at(prepared, numbers, **changes):
    """Of the step after so many, each from the same parameters and on the same batch."""
    (batch,) = training_batches(open_dataset(str(prepared)), batch_size=16, seed=0, steps=range(1))
    step, state = step_and_state(prepared, ONE, **changes)
    batch, found = parallel.shard(batch, ONE), []
    for number in numbers:
        copy = jax.tree.map(jnp.copy, state)  # the step donates it
        found.append(float(step(copy.replace(step=copy.step + number), batch)[1]["loss"]))
    return found


def test_what_is_random_is_drawn_anew_at_each_step(prepared):
    first, again, other = losses_at(prepared, [0, 0, 1])
    assert first == again != other


def test_the_color_stops_at_its_epoch(prepared):
    before, after = losses_at(prepared, [5, 6], color_rescale=True, color_off_from=3.0)  # epochs of 2 steps
    with_color = losses_at(prepared, [5, 6], color_rescale=True)
    (without,) = losses_at(prepared, [6], color_scale=0.0)
    assert [before, after] == pytest.approx([with_color[0], without], rel=1e-6)
    assert after != pytest.approx(with_color[1], rel=1e-6)


def test_each_setting_of_the_augmentation_reaches_the_step(prepared):
    found = {"none": losses_at(prepared, [1]), "reflect": losses_at(prepared, [1], reflect=False)}
    for name in ("crop_to_edge", "crop_chunk", "center_mean", "color_rescale"):
        found[name] = losses_at(prepared, [1], **{name: OF_2012[name]})
    assert len({loss for (loss,) in found.values()}) == 6, found


def test_a_mean_over_one_device_works_operation_by_operation():
    """As --debug_nans runs the step; a fast stand-in for its own test."""
    with jax.disable_jit():
        found = jax.vmap(lambda x: parallel.mean(2 * x), out_axes=None, axis_name=parallel.AXIS)(jnp.ones(1))
    assert found == 2


def test_biases_follow_their_own_rate_and_decay(config, tmp_path):
    def biases(name, **changes):
        changes = {"epochs": 0.64, "weight_decay": 0.1, **changes}  # two steps, after the first of which they are not 0
        train.train_and_evaluate(dataclasses.replace(config, **changes), tmp_path / name, devices=ONE)
        return final_params(tmp_path / name)["conv2"]["bias"]

    plain, undecayed, doubled = biases("0"), biases("1", decay_biases=False), biases("2", bias_learning_rate=0.004)
    assert not np.array_equal(plain, undecayed)
    assert np.linalg.norm(doubled) == pytest.approx(2 * np.linalg.norm(plain), rel=0.1)


def test_the_frozen_layer_stays_and_the_others_move(config, tmp_path):
    config = dataclasses.replace(config, conv1_frozen_from=2.0, checkpoint_every=3)
    train.train_and_evaluate(dataclasses.replace(config, epochs=2.0), tmp_path / "two", devices=ONE)
    train.train_and_evaluate(config, tmp_path / "four", devices=ONE)
    two, four = final_params(tmp_path / "two"), final_params(tmp_path / "four")
    for name in two:
        for kind in two[name]:
            same = np.array_equal(two[name][kind], four[name][kind])
            assert same == (name == "conv1"), f"{name}/{kind}"


def test_a_step_compiles_once_and_donates_its_state(prepared):
    dataset = open_dataset(str(prepared))
    step, state = step_and_state(prepared, TWO)
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
    assert first.params["conv1"]["kernel"].is_deleted()
    assert int(state.step) == 4


def test_a_full_disk_is_told_and_keeps_the_checkpoint_before(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, checkpoint_every=4)
    usage = iter([10**9, 1000])  # bytes free at the first and at the second checkpoint
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=next(usage)))
    with pytest.raises(InputError, match="checkpoints: the checkpoint cannot be written"):
        train.train_and_evaluate(config, tmp_path / "full", devices=ONE)
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["4"]
    monkeypatch.undo()  # now there is room
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    for name in ("full", "whole"):
        train.train_and_evaluate(config, tmp_path / name, devices=ONE)
    assert losses(tmp_path / "full") == losses(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, final_params(tmp_path / "full"), final_params(tmp_path / "whole"))


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config = dataclasses.replace(config, learning_rate=1e30, evaluate_every=100, log_every=5)
    message = "the loss is not finite at step 2; the last good checkpoint is that of step none; in another"
    with pytest.raises(InputError, match=message):
        train.train_and_evaluate(config, tmp_path, devices=ONE)
    assert metrics(tmp_path) == []


def test_parameters_that_are_not_finite_are_not_saved(config, tmp_path):
    config = dataclasses.replace(config, learning_rate=1e38, weight_decay=1000.0, checkpoint_every=1)
    with pytest.raises(InputError, match="a parameter is not finite at step 1; the last good checkpoint is that of"):
        train.train_and_evaluate(config, tmp_path, devices=ONE)
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_clock_that_goes_backwards_changes_nothing(config, tmp_path, monkeypatch):
    train.train_and_evaluate(config, tmp_path / "forwards", devices=ONE)
    now = itertools.count(2e9, -1000)
    monkeypatch.setattr(time, "time", lambda: next(now))
    train.train_and_evaluate(config, tmp_path / "backwards", devices=ONE)
    assert losses(tmp_path / "forwards") == losses(tmp_path / "backwards")
    saved = [sorted(os.listdir(tmp_path / name / "checkpoints")) for name in ("forwards", "backwards")]
    assert saved[0] == saved[1]


def test_a_data_set_that_vanishes_while_training_is_told(config, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "set")
    config = dataclasses.replace(config, dataset=str(tmp_path / "set"), epochs=200.0)
    advance = runlog.RunLog.advance

    def advance_and_vanish(log):
        for shard in (tmp_path / "set").glob("images-train*"):
            os.truncate(shard, 0)
        advance(log)

    monkeypatch.setattr(runlog.RunLog, "advance", advance_and_vanish)
    with pytest.raises(InputError, match=r"images-train.array_record-00000, record [0-9]+: cannot be read"):
        train.train_and_evaluate(config, tmp_path / "run", devices=ONE)


def test_a_read_that_hangs_ends_the_run(config, tmp_path, monkeypatch):
    def hanging(*_):
        yield from batches(open_dataset(config.dataset), 16, 0, range(2))
        threading.Event().wait(20)

    batches = train.input_pipeline.training_batches
    monkeypatch.setattr(train.input_pipeline, "training_batches", hanging)
    config = dataclasses.replace(config, stall_timeout=0.5, evaluate_every=100)
    message = rf"{config.dataset}: no batch was read in 0.5 s \(--stall_timeout\)"
    with pytest.raises(InputError, match=message):
        train.train_and_evaluate(config, tmp_path, devices=ONE)


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"batch_size": 15}, TWO, "--batch_size=15: the 2 devices do not divide it"),
        ({"batch_size": 64}, ONE, "--batch_size=64: more than the 50 training images"),
        ({"crop_size": 41}, ONE, "--crop_size=41: the images of .* have 40 pixels"),
        (
            {"crop_size": 8},
            ONE,
            "--architecture=tiny --crop_size=8: conv2: 1×1 is smaller than a pooling window of 3",
        ),
        ({"num_classes": 2}, ONE, "--num_classes=2: .* has 3 classes"),
        ({"architecture": "vgg"}, ONE, "--architecture=vgg: unknown"),
        ({"dataset": "nowhere"}, ONE, "--dataset=nowhere: neither"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(config, tmp_path, changes, devices, message):
    with pytest.raises(InputError, match=message):
        train.train_and_evaluate(dataclasses.replace(config, **changes), tmp_path / "run", devices=devices)
    assert not (tmp_path / "run").exists()


def test_another_config_in_the_same_workdir_is_refused_and_the_fields_named(config, tmp_path):
    runlog.claim_workdir(tmp_path, config, "data")
    others = {
        "cache": "device",
        "cache_budget": 1.0,
        "checkpoint_every": 3,
        "keep_checkpoints": 9,
        "stall_timeout": 2.0,
    }
    runlog.claim_workdir(tmp_path, dataclasses.replace(config, **others), "data")  # these decide nothing
    other = dataclasses.replace(config, seed=7, learning_rate_drops=())
    message = r"learning_rate_drops was \[3.0\], is \[\]; seed was 0, is 7"
    with pytest.raises(InputError, match=message):
        runlog.claim_workdir(tmp_path, other, "data")


def test_a_run_of_a_version_that_did_not_know_a_field_yet_had_its_default(config, tmp_path):
    runlog.claim_workdir(tmp_path, config, "data")
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    del saved["config"]["reflect"]
    file.write_text(json.dumps(saved))
    runlog.claim_workdir(tmp_path, config, "data")
    with pytest.raises(InputError, match="reflect was True, is False"):
        runlog.claim_workdir(tmp_path, dataclasses.replace(config, reflect=False), "data")


def test_a_workdir_that_only_another_host_sees_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="is not on a disk that all processes see"):
        runlog.claim_workdir(tmp_path, config, "data", exists=True)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config": 3}'])
def test_a_damaged_config_is_refused(config, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="cannot be used"):
        runlog.claim_workdir(tmp_path, config, "data")


def test_the_data_set_may_move_but_not_change(config, tmp_path):
    runlog.claim_workdir(tmp_path, config, "data")
    runlog.claim_workdir(tmp_path, dataclasses.replace(config, dataset="/elsewhere"), "data")
    with pytest.raises(InputError, match=f"dataset was {config.dataset} with other images, is {config.dataset}"):
        runlog.claim_workdir(tmp_path, config, "other data")
    with pytest.raises(InputError, match=f"dataset was {config.dataset}, is /elsewhere"):
        runlog.claim_workdir(tmp_path, dataclasses.replace(config, dataset="/elsewhere"), "other data")


def test_more_outputs_than_classes(config, tmp_path):
    config = dataclasses.replace(config, num_classes=7, epochs=0.5)
    train.train_and_evaluate(config, tmp_path, devices=ONE)
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    net = model.AlexNet(with_classes(TINY, 7))
    state = parallel.replicate(train.init_state(net, sgd(RATES), crop_size=CROP, seed=0), ONE)
    assert checkpoints.restore(checkpoints.latest_step(), state).params["fc4"]["bias"].shape == (7,)
    checkpoints.close()
