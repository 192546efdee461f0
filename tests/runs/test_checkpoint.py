"""Saving and restoring: what is damaged, or another network's, is noticed; the best is kept."""

import dataclasses
import functools
import json
import math
import os
import resource
import shutil
import signal
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.device import parallel
from alexnet_jax.options import InputError
from alexnet_jax.paper import optim
from alexnet_jax.paper.table import Conv, Dense
from alexnet_jax.paper.train_state import TrainState
from alexnet_jax.paper.written import to_json
from alexnet_jax.runs import checkpoint, errors
from alexnet_jax.runs.stopping import stop_requests

TABLE = to_json((Conv(40, 5),))
# Orbax leaves tasks behind where its reading fails, whose end Python then complains of.
reads_damaged = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(step):
    rng = np.random.default_rng(step)
    params = {
        "conv1": {"kernel": rng.normal(size=(5, 5, 3, 40)).astype(np.float32), "bias": np.full(40, step, np.float32)}
    }
    return TrainState(jnp.int32(step), params, (jax.tree.map(np.negative, params), jnp.float32(step)))


def save(folder, steps, keep=2, log=None):
    """Checkpoints of these steps, {step: top-1 error}."""
    checkpoints = checkpoint.Checkpoints(folder, keep=keep)
    for step, top1_error in steps.items():
        checkpoints.save(step, state(step), TABLE, log or {}, math.inf if top1_error is None else top1_error)
    checkpoints.close()


def restore_with_log(folder, like=None, layers=TABLE):
    checkpoints = checkpoint.Checkpoints(folder)
    try:
        return checkpoints.restore_latest(like or state(0), layers)
    finally:
        checkpoints.close()


def restore(folder, like=None, layers=TABLE):
    found = restore_with_log(folder, like, layers)
    return found and found[0]


def restore_params(folder, step, layers=TABLE):
    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    like = jax.eval_shape(lambda: state(0).params)
    try:
        return checkpoints.restore_params(step, like, layers)
    finally:
        checkpoints.close()


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def names(folder):
    return sorted(os.listdir(folder))


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(expected))


def test_the_newest_comes_back_bit_for_bit(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, {3: None, 5: 0.5})
    found = restore(tmp_path)
    assert int(found.step) == 5
    equal(found, state(5))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("int32"), np.dtype("float32")}


def test_a_checkpoint_is_three_items(tmp_path):
    save(tmp_path, {3: 0.5})
    folders = {path.name for path in (tmp_path / "3").iterdir() if path.is_dir()}
    assert folders == {"params", "optimizer", "log", "metrics"}  # the last is orbax's: the error, for the best one
    checkpoints = checkpoint.Checkpoints(tmp_path, read_only=True)
    params, optimizer = (
        checkpoints._handlers[name].metadata(tmp_path / "3" / name) for name in ("params", "optimizer")
    )
    checkpoints.close()
    assert [*params.tree] == ["conv1"]
    assert set(params.custom_metadata) == {"layers", "crc32", "form_crc32"}
    assert params.custom_metadata["layers"] == TABLE
    assert sorted(optimizer.tree) == ["state", "step"]
    assert set(optimizer.custom_metadata) == {"crc32", "form_crc32"}


@reads_damaged
def test_the_parameters_are_read_alone(tmp_path):
    save(tmp_path, {3: 0.5})
    flip(largest_file(tmp_path / "3" / "optimizer"))
    equal(restore_params(tmp_path, 3), state(3).params)
    for item in ("optimizer", "log"):
        shutil.rmtree(tmp_path / "3" / item)
    equal(restore_params(tmp_path, 3), state(3).params)
    flip(largest_file(tmp_path / "3" / "params"))
    with pytest.raises(checkpoint.Damaged, match="its numbers are not those that were saved"):
        restore_params(tmp_path, 3)


def test_the_log_comes_back_whatever_its_keys(tmp_path):
    log = {
        "sums": {"loss": [1.5, 3], "top1_error": [0.25, 3], "a number of one's own": [math.pi, 1]},
        "lowest": 0.5,
        "more": {"of": ["a later version", None, True]},
    }
    save(tmp_path, {3: 0.5}, log=log)
    assert restore_with_log(tmp_path)[1] == log
    save(tmp_path, {4: 0.5}, log={"sums": {"ratio": [math.nan, 2]}})  # what one measures oneself may be anything
    (ratio, steps) = restore_with_log(tmp_path)[1]["sums"]["ratio"]
    assert (math.isnan(ratio), steps) == (True, 2)


def test_what_is_saved_may_be_overwritten_at_once(tmp_path):
    checkpoints, log = checkpoint.Checkpoints(tmp_path), {"sums": {"loss": [1.0, 2]}}
    saved = jax.tree.map(np.array, state(5))
    checkpoints.save(5, saved, TABLE, log)
    log["sums"]["loss"] = [3.0, 4]
    saved.params["conv1"]["kernel"][:] = 0
    checkpoints.close()
    found, found_log = restore_with_log(tmp_path)
    equal(found, state(5))
    assert found_log == {"sums": {"loss": [1.0, 2]}}


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    save(tmp_path, {1: 0.9, 2: None, 3: 0.0, 4: None, 5: 0.7, 6: None, 7: None}, keep=2)
    assert names(tmp_path) == ["3", "6", "7"]
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (7, 3)
    checkpoints.close()
    save(tmp_path / "three", {step: None for step in range(1, 6)}, keep=3)
    assert names(tmp_path / "three") == ["3", "4", "5"]


def test_a_kill_leaves_none_that_is_half_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)  # before it has begun
        save(tmp_path, dict.fromkeys(range(1, 5)), keep=2)
    assert names(tmp_path) == [".removed", "3", "4"]
    assert names(tmp_path / ".removed") == ["1", "2"]
    shutil.rmtree(tmp_path / ".removed" / "1" / "params")  # or in the middle of it
    equal(restore(tmp_path), state(4))
    assert names(tmp_path) == ["3", "4"]


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def without_checksum(folder):
    file = folder / "_METADATA"
    metadata = json.loads(file.read_text())
    del metadata["custom_metadata"]["crc32"]
    file.write_text(json.dumps(metadata))


@reads_damaged
@pytest.mark.parametrize("item", ["params", "optimizer"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(largest_file(folder)),
        lambda folder: os.truncate(largest_file(folder), largest_file(folder).stat().st_size // 2),
        lambda folder: largest_file(folder).unlink(),
        lambda folder: (folder / "_METADATA").unlink(),
        lambda folder: (folder / "_METADATA").write_text("{"),
        without_checksum,
        shutil.rmtree,
    ],
    ids=["bit", "cut", "file", "metadata", "half metadata", "checksum", "all"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capfd, damage, item):
    save(tmp_path, {3: None, 5: 0.5})
    damage(tmp_path / "5" / item)
    _is_named_and_the_one_before_is_used(tmp_path, capfd, lambda: damage(tmp_path / "5" / item))


def test_so_is_one_whose_log_has_another_form(tmp_path):
    save(tmp_path, {3: None})
    save(tmp_path, {5: None}, log={"sums": {"loss": "three"}})
    equal(restore(tmp_path), state(3))
    assert names(tmp_path) == ["3", "5.damaged"]


@reads_damaged
@pytest.mark.parametrize(
    "damage",
    [shutil.rmtree, lambda folder: (folder / "metadata").write_text('{"sums": {"loss": [0.')],
    ids=["all", "half"],
)
def test_so_is_one_whose_log_is_damaged(tmp_path, capfd, damage):
    save(tmp_path, {3: None, 5: 0.5})
    damage(tmp_path / "5" / "log")
    _is_named_and_the_one_before_is_used(tmp_path, capfd, lambda: damage(tmp_path / "5" / "log"))


def _is_named_and_the_one_before_is_used(folder, capfd, damage_again):
    found = restore(folder)
    equal(found, state(3))
    (warning,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: "))
    assert warning.startswith(f"warning: {folder / '5'}: is damaged (")
    assert names(folder) == ["3", "5.damaged"]
    save(folder, {5: 0.5})
    assert int(restore(folder).step) == 5
    damage_again()
    assert int(restore(folder).step) == 3
    assert names(folder) == ["3", "5.damaged", "5.damaged1"]


@reads_damaged
def test_where_all_are_damaged_nothing_begins_anew_in_silence(tmp_path):
    save(tmp_path, {3: None, 5: 0.5})
    flip(largest_file(tmp_path / "3" / "params"))
    shutil.rmtree(tmp_path / "5" / "optimizer")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"no checkpoint can be read \(5: .*; 3: params: its numbers are not those"
        ):
            restore(tmp_path)
        assert names(tmp_path) == ["3", "5"]


def test_the_checkpoint_of_another_network_is_told_by_its_first_differing_parameter(tmp_path):
    save(tmp_path, {3: None})
    other = state(3)
    other.params["conv1"]["kernel"] = np.zeros((5, 5, 3, 48), np.float32)
    message = r"3: is of another network: params/conv1/kernel is \(5, 5, 3, 40\) there, \(5, 5, 3, 48\) here"
    with pytest.raises(InputError, match=message):
        restore(tmp_path, other)
    more = state(3)
    more.params["fc9"] = {"kernel": np.zeros((2, 2), np.float32)}
    with pytest.raises(InputError, match=r"params/fc9/kernel is missing there, \(2, 2\) here"):
        restore(tmp_path, more)
    assert names(tmp_path) == ["3"]


def test_the_checkpoint_of_another_table_is_told_by_layer_and_field(tmp_path):
    """Also where all shapes agree."""
    save(tmp_path, {3: None})
    table = to_json((Conv(40, 5, stride=2),))
    with pytest.raises(InputError, match=r"3: is of another network: conv1 stride was 1, is 2$"):
        restore(tmp_path, layers=table)
    with pytest.raises(InputError, match=r"3: is of another network: conv1 stride was 1, is 2$"):
        restore_params(tmp_path, 3, table)
    with pytest.raises(InputError, match=r"3: is of another network: the layers were conv1, are conv1, fc2$"):
        restore_params(tmp_path, 3, to_json((Conv(40, 5), Dense(3))))
    assert names(tmp_path) == ["3"]


def test_another_optimizer_is_refused_by_name(tmp_path):
    save(tmp_path, {3: None})
    more = dataclasses.replace(state(3), opt_state=(*state(3).opt_state, {"momentum": np.zeros(2, np.float32)}))
    with pytest.raises(InputError, match=r"3: is of another optimizer: optimizer/state/2/momentum is missing there, "):
        restore(tmp_path, more)
    for rule in (optim.papers_rule(0.01), optax.adam(0.01), optax.sgd(0.01)):
        other = dataclasses.replace(state(3), opt_state=rule.init(state(3).params))
        with pytest.raises(InputError, match=r"3: is of another optimizer: optimizer/state/\S+ is .* here$"):
            restore(tmp_path, other)
    assert names(tmp_path) == ["3"]
    equal(restore_params(tmp_path, 3), state(3).params)


@pytest.mark.parametrize(
    "rule",
    [
        optim.by_parameter(
            {"kernel": optim.papers_rule(0.01, patience=2), "bias": optim.papers_rule(lambda step: 0.1 / (1 + step))}
        ),
        optim.with_plateau(optax.adamw(0.01, mu_dtype=jnp.bfloat16)),
        optax.sgd(0.01),  # whose state holds nothing
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.01, momentum=0.9),
        optax.masked(optax.adam(0.01), {"conv1": {"kernel": True, "bias": False}}),
    ],
    ids=["the paper's", "plateau", "empty", "hyperparameters", "masked"],
)
def test_the_state_of_any_optimizer_comes_back(tmp_path, rule):
    params = state(3).params
    opt_state = jax.tree.map(lambda leaf: leaf + jnp.asarray(3, leaf.dtype), rule.init(params))
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(3, TrainState(jnp.int32(3), params, opt_state), TABLE, {})
    checkpoints.close()
    found = restore(tmp_path, TrainState(jnp.int32(0), params, rule.init(params)))
    assert jax.tree.structure(found.opt_state) == jax.tree.structure(opt_state)
    equal(found.opt_state, opt_state)
    types = [[leaf.dtype for leaf in jax.tree.leaves(of)] for of in (found.opt_state, opt_state)]
    assert types[0] == types[1]


def test_the_keys_in_the_state_of_an_optimizer_come_back(tmp_path):
    params, rule = state(3).params, optax.add_noise(0.1, 0.5, jax.random.key(7))
    like = optax.add_noise(0.1, 0.5, jax.random.key(0)).init(params)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(3, TrainState(jnp.int32(3), params, rule.init(params)), TABLE, {})
    checkpoints.close()
    found = restore(tmp_path, TrainState(jnp.int32(0), params, like))
    assert found.opt_state.rng_key.dtype == like.rng_key.dtype
    equal(jax.random.key_data(found.opt_state.rng_key), jax.random.key_data(jax.random.key(7)))


def test_what_two_devices_saved_goes_on_one(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(4, parallel.replicate(state(4), jax.devices()[:2]), TABLE, {})
    checkpoints.close()
    on_one = parallel.replicate(restore(tmp_path), jax.devices()[:1])
    assert on_one.params["conv1"]["kernel"].devices() == set(jax.devices()[:1])
    equal(jax.device_get(on_one), state(4))


def test_nothing_is_pickled(tmp_path):
    save(tmp_path, {3: 0.5})
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or not file.read_bytes().startswith(b"\x80")


def test_the_first_signal_waits_to_be_asked_for_and_the_second_does_not(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with stop_requests(checkpoints) as stop_requested:
        assert not stop_requested(1)
        signal.raise_signal(signal.SIGTERM)
        assert stop_requested(2)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint_is_one_line(tmp_path, capfd, monkeypatch):
    """A limit on the size of files stands for the disk, of which something else takes the room meanwhile."""
    rng = np.random.default_rng(0)
    large = {f"conv{number}": {"kernel": rng.normal(size=(300, 300)).astype(np.float32)} for number in range(8)}
    checkpoints = checkpoint.Checkpoints(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints.save(3, state(3), TABLE, {})
    checkpoints._manager.wait_until_finished()
    hook, told = sys.unraisablehook, []
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        checkpoints.save(5, TrainState(jnp.int32(5), large, ()), TABLE, {})
        with pytest.raises(InputError, match=rf"^{tmp_path}: the checkpoint cannot be written \(") as error:
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(error.value)
    assert "Event loop is closed" not in capfd.readouterr().err
    monkeypatch.setattr(checkpoints, "_before", told.append)
    for words, passed in (("Event loop is closed", 0), ("another error", 1)):
        sys.unraisablehook = functools.partial(errors.report_lost_error, told.append)
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(words)))
        assert len(told) == passed
    sys.unraisablehook = hook


def test_a_checkpoint_waits_for_the_one_before_until_it_asks_for_room(tmp_path, monkeypatch):
    checkpoints, asked = checkpoint.Checkpoints(tmp_path), []

    def free():
        asked.append(names(tmp_path))
        return 10**9

    monkeypatch.setattr(checkpoints, "_free", free)
    for step in (3, 5):
        checkpoints.save(step, state(step), TABLE, {})
    checkpoints.close()
    assert asked == [[], ["3"]]
