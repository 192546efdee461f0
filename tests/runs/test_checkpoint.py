"""Saving and restoring: what is damaged, or another network's, is noticed; the best is kept."""

import math
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.config import InputError
from alexnet_jax.device import parallel
from alexnet_jax.runs import checkpoint
from alexnet_jax.train import TrainState


def state(step):
    rng = np.random.default_rng(step)
    params = {
        "conv1": {"kernel": rng.normal(size=(5, 5, 3, 40)).astype(np.float32), "bias": np.full(8, step, np.float32)}
    }
    return TrainState(jnp.int32(step), params, (jax.tree.map(np.negative, params), jnp.float32(step)), (), ())


def save(folder, steps, keep=2):
    """Checkpoints of these steps, {step: top-1 error}."""
    checkpoints = checkpoint.Checkpoints(folder, keep=keep)
    for step, top1_error in steps.items():
        checkpoints.save(step, state(step), math.inf if top1_error is None else top1_error)
    checkpoints.close()


def restore(folder, like=None):
    checkpoints = checkpoint.Checkpoints(folder)
    found = checkpoints.restore_latest(like or state(0))
    checkpoints.close()
    return found


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def names(folder):
    return sorted(os.listdir(folder))


def test_the_newest_comes_back_bit_for_bit(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, {3: None, 5: 0.5})
    step, found = restore(tmp_path)
    assert step == 5
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(state(5)))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("int32"), np.dtype("float32")}


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    save(tmp_path, {1: 0.9, 2: None, 3: 0.0, 4: None, 5: 0.7, 6: None, 7: None}, keep=2)
    assert names(tmp_path) == ["3", "6", "7"]
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (7, 3)
    checkpoints.close()
    save(tmp_path / "three", {step: None for step in range(1, 6)}, keep=3)
    assert names(tmp_path / "three") == ["3", "4", "5"]


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


# Orbax leaves tasks behind where its reading fails, whose end Python then complains of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(largest_file(folder)),
        lambda folder: os.truncate(largest_file(folder), largest_file(folder).stat().st_size // 2),
        lambda folder: largest_file(folder).unlink(),
        lambda folder: (folder / "state" / "_METADATA").unlink(),
        lambda folder: (folder / "state" / "_METADATA").write_text("{"),
        lambda folder: shutil.rmtree(folder / "state"),
        lambda folder: shutil.rmtree(folder / "digest"),
    ],
    ids=["bit", "cut", "file", "metadata", "half metadata", "state", "digest"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capfd, damage):
    save(tmp_path, {3: None, 5: 0.5})
    damage(tmp_path / "5")
    step, found = restore(tmp_path)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(state(3)))
    (warning,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: "))
    assert warning.startswith(f"warning: {tmp_path / '5'}: is damaged (")
    assert names(tmp_path) == ["3", "5.damaged"]
    save(tmp_path, {5: 0.5})
    assert restore(tmp_path)[0] == 5
    damage(tmp_path / "5")
    assert restore(tmp_path)[0] == 3
    assert names(tmp_path) == ["3", "5.damaged", "5.damaged1"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_all_are_damaged_nothing_begins_anew_in_silence(tmp_path):
    save(tmp_path, {3: None, 5: 0.5})
    flip(largest_file(tmp_path / "3"))
    shutil.rmtree(tmp_path / "5" / "state")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"no checkpoint can be read \(5: .*; 3: its numbers are not those that were s"
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


def test_what_two_devices_saved_goes_on_one(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(4, parallel.replicate(state(4), jax.devices()[:2]))
    checkpoints.close()
    _, found = restore(tmp_path)
    on_one = parallel.replicate(found, jax.devices()[:1])
    assert on_one.params["conv1"]["kernel"].devices() == set(jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(on_one), jax.device_get(state(4)))


def test_nothing_is_pickled(tmp_path):
    save(tmp_path, {3: 0.5})
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or not file.read_bytes().startswith(b"\x80")


def test_the_first_signal_waits_to_be_asked_for_and_the_second_does_not(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with checkpoint.stop_requests(checkpoints) as stop_requested:
        assert not stop_requested(1)
        signal.raise_signal(signal.SIGTERM)
        assert stop_requested(2)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    checkpoints.close()
