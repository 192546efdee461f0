"""However `prepare` ends, nothing is left behind: no process, folder or warning, nor what blocks the next one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import interrupted_after
from drawn import fail, items, picture, write
from PIL import Image
from test_shards import contents

from alexnet_jax import prepare
from alexnet_jax.data import datasets, shards
from alexnet_jax.options import InputError


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "EXAMPLES_PER_SHARD", 8)


def photos(folder, number=12):
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            Image.fromarray(picture(label, index)).save(folder / name / f"{index:03}.png")
    return folder


def script(tmp_path, text):
    """A script of somebody's own, with shards of eight images."""
    file = tmp_path / "script.py"
    file.write_text(f"from alexnet_jax.data import shards\nshards.EXAMPLES_PER_SHARD = 8\n{text}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, file], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


WITHOUT_GUARD = """
from alexnet_jax import prepare
prepare.prepare(prepare.Options(source=("photos",), output="out", size=16, workers=2))
"""


def test_a_script_without_a_guard_works(tmp_path):
    photos(tmp_path / "photos")
    process = script(tmp_path, WITHOUT_GUARD)
    out, errors = process.communicate(timeout=100)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
    assert out.count("out: 2 classes, 22 train images, 2 validation images") == 1
    assert len(datasets.open_dataset(tmp_path / "out").splits["train"]) == 22


ITEMS_OF_ITS_OWN = """
import numpy as np
from pathlib import Path
from alexnet_jax import InputError
from alexnet_jax.data import datasets
def read():
    return np.zeros((20, 20, 3), np.uint8)
splits = {split: [shards.Item("a", "a", 0, read)] * 20 for split in ("train", "validation")}
try:
    datasets.write(Path("out"), ["a"], splits, size=16, workers=2)
except InputError as error:
    print(error)
"""


def test_a_script_whose_functions_the_workers_need_is_told_of_the_guard(tmp_path):
    process = script(tmp_path, ITEMS_OF_ITS_OWN)
    out, errors = process.communicate(timeout=100)
    assert "the script that calls this has no `if __name__ == '__main__':` around the call" in out
    assert errors == ""
    assert not (tmp_path / "out").exists()


def test_nothing_is_said_after_the_error(tmp_path):
    photos(tmp_path / "photos")
    (tmp_path / "photos" / "dog" / "006.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    text = (
        "import sys\nfrom alexnet_jax import prepare\n"
        "sys.argv += ['--source=photos', '--output=out', '--size=16', '--workers=2']\nprepare.main()"
    )
    process = script(tmp_path, text)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("error: photos/dog/006.png: is a damaged PNG")
    assert "leaked" not in errors
    assert sorted(os.listdir(tmp_path)) in (
        ["out.incomplete", "photos", "script.py"], ["photos", "script.py"]
    )  # fmt: skip


SLOWLY = """
import time
from drawn import slow_picture
from pathlib import Path
from alexnet_jax.data import datasets
splits = {split: [shards.Item("a", "a", 0, slow_picture)] * 400 for split in ("train", "validation")}
datasets.write(Path("out"), ["a"], splits, size=16, workers=2)
"""


def below(process):
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_workers_end_with_their_first_process(tmp_path, end):
    process = script(tmp_path, SLOWLY)
    deadline = time.time() + 60
    while len(list((tmp_path / "out.incomplete").glob("*.npz"))) < 2:
        assert time.time() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    workers = below(process)
    assert len(workers) >= 2
    process.send_signal(end)
    process.communicate(timeout=20)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def test_the_scratch_folder_of_a_dead_run_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    photos(tmp_path / "photos")
    left = tmp_path / "out.unpacked-dead"
    left.mkdir()
    (left / "0.tar").write_bytes(b"half of it")
    with prepare._scratch(tmp_path / "out") as living:
        assert not left.exists()
        prepare.prepare(prepare.Options(source=(str(tmp_path / "photos"),), output=str(tmp_path / "out"), size=16))
        assert living.exists()
    assert sorted(os.listdir(tmp_path)) == ["out", "photos"]


def damage_of(kind):
    def byte(folder, at):
        file = folder / "train-00001.npz"
        content = bytearray(file.read_bytes())
        content[int(at * len(content))] ^= 0xFF
        file.write_bytes(content)

    def folder_in_place(folder, name):
        (folder / name).unlink()
        (folder / name).mkdir()
        (folder / name / "inside").touch()

    def account(folder, **others):
        """One with the right key that nothing of ours has written."""
        file = folder / "train-00001.npz"
        with np.load(file) as opened:
            kept = {name: opened[name] for name in opened.files if name != "checksums"}
        np.savez(file, **(kept | others))

    return {
        "a byte of the sums": lambda folder: byte(folder, 0.5),
        "a byte near the end": lambda folder: byte(folder, 0.98),
        "an account of other classes": lambda folder: account(folder, counts=np.ones(2, int)),
        "an account of another size": lambda folder: account(folder, pixels=np.ones((9, 9, 3), int)),
        "an account of fewer than none": lambda folder: account(folder, num_bytes=np.array(-1)),
        "an account of objects": lambda folder: account(folder, skipped=np.array([None])),
        "cut off": lambda folder: os.truncate(folder / "train-00001.npz", 3000),
        "empty": lambda folder: os.truncate(folder / "train-00001.npz", 0),
        "a folder for an account": lambda folder: folder_in_place(folder, "train-00001.npz"),
        "a folder for a shard": lambda folder: folder_in_place(folder, "train-00001.shard"),
        "another file": lambda folder: (folder / "images-train.array_record-00099").write_text("of a larger one"),
        "a folder for what is being written": lambda folder: (folder / "train-00003.npz.partial").mkdir(),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "a byte of the sums", "a byte near the end", "cut off", "empty", "a folder for an account",
        "a folder for a shard", "another file", "a folder for what is being written", "an account of other classes",
        "an account of another size", "an account of fewer than none", "an account of objects",
    ],
)  # fmt: skip
def test_a_damaged_rest_is_written_anew(tmp_path, kind):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", progress=interrupted_after(29))
    damage_of(kind)(tmp_path / "set.incomplete")
    write(tmp_path / "set")
    write(tmp_path / "whole")
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_what_was_skipped_is_not_passed_over_when_it_is_to_stop(tmp_path):
    splits = {"train": items(0, 24), "validation": items(1, 9)}
    splits["train"][3] = splits["train"][3]._replace(read=fail)
    names = ("red", "green", "blue")
    with pytest.raises(KeyboardInterrupt):
        datasets.write(tmp_path / "set", names, splits, size=24, on_error="skip", progress=interrupted_after(20))
    with pytest.raises(InputError, match="0/3: is bad"):
        datasets.write(tmp_path / "set", names, splits, size=24)


@pytest.mark.parametrize("source", [".", "photos", "photos/cat/.."])
def test_an_output_inside_the_source_is_refused(tmp_path, monkeypatch, source):
    photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    Path("other").symlink_to("photos")
    for output in ("photos/out", "other/out", "photos/cat/more/out"):
        with pytest.raises(InputError, match=f"--output={output}: lies in --source={source}; choose"):
            prepare.prepare(prepare.Options(source=(source,), output=output))
    assert sorted(os.listdir("photos")) == ["cat", "dog"]
