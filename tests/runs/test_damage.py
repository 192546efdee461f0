"""Damage in any file of a checkpoint: the run goes on from it where nothing is lost, else from the one before."""

import os
import shutil

import numpy as np
import pytest
from test_checkpoint import TABLE, equal, names, restore, save, state

from alexnet_jax.options import InputError
from alexnet_jax.runs import checkpoint

# Orbax leaves tasks behind where its reading fails, whose end Python then complains of.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def flipped(place):
    def damage(file):
        content = bytearray(file.read_bytes())
        content[int(place * (len(content) - 1))] ^= 0xFF
        file.write_bytes(content)

    return damage


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: os.truncate(file, 0),
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "first byte": flipped(0),
    "middle byte": flipped(0.5),
    "last byte": flipped(1),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "an object": lambda file: file.write_bytes(b"{}"),
    "a list": lambda file: file.write_bytes(b"[]"),
    "deep": lambda file: file.write_bytes(b"[" * 100_000),
}
LOG = {"sums": {"loss": [1.5, 3]}, "lowest": 0.5}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    save(folder, {3: 0.75, 5: 0.5}, log=LOG)
    return folder


def files(folder):
    return sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())


def goes_on(folder, capfd):
    """The step from which a run goes on, with its numbers as they were saved; it can save again."""
    capfd.readouterr()
    checkpoints = checkpoint.Checkpoints(folder)
    found, log = checkpoints.restore_latest(state(0), TABLE)
    step = int(found.step)
    equal(found, state(step))
    assert log == LOG
    checkpoints.save(7, state(7), TABLE, LOG, 0.25)
    checkpoints.close()
    assert "7" in names(folder)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    set_aside = [line for line in warnings if line.startswith(f"warning: {folder / '5'}: is damaged (")]
    assert len(warnings) == len(set_aside) == (step != 5)
    assert ("5.damaged" in names(folder)) == (step != 5)
    return step


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
def test_no_file_of_a_checkpoint_that_is_damaged_stops_a_run(tmp_path, good, capfd, kind):
    steps = {}
    for file in files(good / "5"):
        folder = tmp_path / str(len(steps))
        shutil.copytree(good, folder)
        DAMAGES[kind](folder / "5" / file)
        steps[str(file)] = goes_on(folder, capfd)
    assert len(steps) > 15
    assert set(steps.values()) == {3, 5}  # orbax keeps some things twice
    for file in ("optimizer/_METADATA", "params/_METADATA", "params/manifest.ocdbt"):
        assert steps[file] == 3
    assert steps["metrics/metrics"] == steps["log/metadata"] == 3


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("metrics/metrics", "first byte"),
        ("metrics/metrics", "missing"),
        ("metrics/metrics", "a list"),
        ("metrics/metrics", "deep"),
        ("log/metadata", "middle byte"),
        ("log/metadata", "an object"),
        ("_CHECKPOINT_METADATA", "a list"),
        ("_CHECKPOINT_METADATA", "deep"),
        ("params/_METADATA", "zeros"),
    ],
)
def test_the_one_before_is_used(tmp_path, good, capfd, file, kind):
    shutil.copytree(good, tmp_path / "run")
    DAMAGES[kind](tmp_path / "run" / "5" / file)
    assert goes_on(tmp_path / "run", capfd) == 3


@pytest.mark.parametrize("name", ["007", "\N{ARABIC-INDIC DIGIT SEVEN}", "7.damaged"])
@pytest.mark.parametrize("kind", ["empty", "copy"])
def test_a_folder_beside_them_is_none(tmp_path, good, name, kind):
    shutil.copytree(good, tmp_path / "run")
    if kind == "copy":
        shutil.copytree(good / "5", tmp_path / "run" / name)
    else:
        (tmp_path / "run" / name).mkdir()
    checkpoints = checkpoint.Checkpoints(tmp_path / "run")
    equal(checkpoints.restore_latest(state(0), TABLE)[0], state(5))
    checkpoints.save(7, state(7), TABLE, LOG, 0.25)
    checkpoints.close()
    assert {"5", "7", name} <= {*names(tmp_path / "run")}


@pytest.mark.parametrize("name", ["8", "9" * 200])
def test_one_under_the_name_of_another_step_is_damaged(tmp_path, good, capfd, name):
    shutil.copytree(good, tmp_path / "run")
    (tmp_path / "run" / "5").rename(tmp_path / "run" / name)
    equal(restore(tmp_path / "run"), state(3))
    assert f"warning: {tmp_path / 'run' / name}: is damaged (optimizer: is of step 5)" in capfd.readouterr().err
    assert names(tmp_path / "run") == ["3", f"{name}.damaged"]


def test_each_that_is_set_aside_has_a_name_of_its_own(tmp_path, good, capfd):
    shutil.copytree(good, tmp_path / "run")
    (tmp_path / "run" / "5.damaged").mkdir()
    (tmp_path / "run" / "5.damaged1").symlink_to("nothing")
    DAMAGES["first byte"](tmp_path / "run" / "5" / "metrics" / "metrics")
    equal(restore(tmp_path / "run"), state(3))
    assert f"it is now {tmp_path / 'run' / '5.damaged2'}" in capfd.readouterr().err
    assert names(tmp_path / "run") == ["3", "5.damaged", "5.damaged1", "5.damaged2"]


def test_a_digit_that_was_changed_in_the_log_or_the_table_is_seen(tmp_path, good, capfd):
    for number, (file, before, after) in enumerate(
        ((("log", "metadata"), b"1.5", b"2.5"), (("params", "_METADATA"), b'"features": 40', b'"features": 41'))
    ):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        place = (folder / "5").joinpath(*file)
        content = place.read_bytes()
        assert before in content
        place.write_bytes(content.replace(before, after))
        assert goes_on(folder, capfd) == 3


def test_an_older_one_that_is_damaged_is_set_aside_too(tmp_path, good, capfd):
    shutil.copytree(good, tmp_path / "run")
    DAMAGES["half"](tmp_path / "run" / "3" / "metrics" / "metrics")
    equal(restore(tmp_path / "run"), state(5))
    assert f"warning: {tmp_path / 'run' / '3'}: is damaged (" in capfd.readouterr().err
    assert names(tmp_path / "run") == ["3.damaged", "5"]


def test_where_none_is_left_it_is_one_line(tmp_path, good):
    shutil.copytree(good, tmp_path / "run")
    for step in ("3", "5"):
        DAMAGES["empty"](tmp_path / "run" / step / "metrics" / "metrics")
    with pytest.raises(InputError, match=r"no checkpoint can be read \(5: .*metrics: cannot be read .*; 3: ") as error:
        restore(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert names(tmp_path / "run") == ["3", "5"]


def test_whoever_only_reads_needs_no_other_checkpoint_and_no_metrics(tmp_path, good):
    shutil.copytree(good, tmp_path / "run")
    for step in ("3", "5"):
        DAMAGES["first byte"](tmp_path / "run" / step / "metrics" / "metrics")
    before = {file: (tmp_path / "run" / file).read_bytes() for file in files(tmp_path / "run")}
    checkpoints = checkpoint.Checkpoints(tmp_path / "run", read_only=True)
    assert checkpoints.step_of("latest") == checkpoints.latest_step() == 5
    params = checkpoints.restore_params(5, state(0).params, TABLE)
    np.testing.assert_array_equal(params["conv1"]["bias"], np.full(40, 5, np.float32))
    with pytest.raises(InputError, match=r"metrics/metrics: cannot be read \("):
        checkpoints.step_of("best")
    checkpoints.close()
    assert {file: (tmp_path / "run" / file).read_bytes() for file in files(tmp_path / "run")} == before
    checkpoints = checkpoint.Checkpoints(good, read_only=True)
    assert (checkpoints.step_of("best"), checkpoints.best_step()) == (5, 5)
    checkpoints.close()
