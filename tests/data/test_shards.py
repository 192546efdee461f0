"""Writing in shards: the same bytes however it is done; nothing is lost, and what is amiss is named."""

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import interrupted_after
from drawn import NAMES, fail, items, picture, write
from PIL import Image

from alexnet_jax.data import datasets, images, manifest, shards
from alexnet_jax.data.input_pipeline import evaluation_batches
from alexnet_jax.options import InputError


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "EXAMPLES_PER_SHARD", 8)


@pytest.mark.parametrize(
    "name", ["", " a", "a\n", "a\nb", "a\u2028b", "a\x1b[31m", "a\ud800", "red", "x" * 10**6 + "\n"]
)
def test_a_name_of_a_class_that_cannot_be_kept_is_refused(tmp_path, name):
    splits = {"train": items(0, 6), "validation": items(1, 6)}
    with pytest.raises(InputError, match=r"^class '.*: (its name must not|there are 2 of this name)") as error:
        datasets.write(tmp_path / "set", ["red", "green", name], splits, size=24)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400
    assert not any(tmp_path.iterdir())


def test_an_output_that_is_no_text_is_one_line(tmp_path):
    place = tmp_path / os.fsdecode(b"set\xff")
    with pytest.raises(InputError, match=r"set.: must be text in UTF-8$"):
        write(place)
    assert not any(tmp_path.iterdir())
    write(tmp_path / "set")
    (tmp_path / "set").rename(place)
    with pytest.raises(InputError, match=r"^--dataset=.*: must be text in UTF-8$"):
        datasets.open_dataset(place)


def test_an_output_that_is_a_link_to_nothing_is_there_already(tmp_path):
    (tmp_path / "set").symlink_to("nothing")
    with pytest.raises(InputError, match="set: already exists"):
        write(tmp_path / "set")


def test_a_manifest_of_more_images_than_there_can_be_takes_no_memory(tmp_path):
    write(tmp_path / "set")
    content = json.loads((tmp_path / "set" / "manifest.json").read_text())
    del content["sha256"]
    of = next(name for name in content["shards"] if "train" in name)
    content["shards"][of]["images"] += 10**15
    content["images"]["train"]["red"] += 10**15
    (tmp_path / "set" / "manifest.json").write_text(manifest.text(content))
    with pytest.raises(InputError, match=rf"{of} is too short for the 1,000,000,000,000,0\d\d images"):
        datasets.open_dataset(tmp_path / "set")


@pytest.mark.parametrize("label", [3, -1, 2**40, -(2**63)])
def test_a_label_that_is_no_class_is_named(tmp_path, monkeypatch, label):
    monkeypatch.setattr(shards, "_record", lambda image, _, name, record=shards._record: record(image, label, name))
    write(tmp_path / "set")
    data = datasets.open_dataset(tmp_path / "set")
    with pytest.raises(InputError, match=rf"array_record-00000, record 0: its label is {label}, which is no class"):
        next(evaluation_batches(data, "validation", batch_size=4))


def test_two_processes_write_what_one_does(tmp_path):
    told = []
    write(tmp_path / "one")
    counts, skipped = write(tmp_path / "two", workers=2, progress=told.append)
    assert (counts, skipped, sum(told)) == ({"train": 50, "validation": 13}, [], 63)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert os.listdir(tmp_path) == ["one", "two"] or os.listdir(tmp_path) == ["two", "one"]
    names = [name for name in contents(tmp_path / "one") if "array_record" in name]
    assert len(names) == 7 + 2


def test_what_stands_in_the_shards_is_in_order_and_every_tfds_tool_reads_it(tmp_path):
    write(tmp_path / "set")
    builder = tfds.builder_from_directory(tmp_path / "set")
    examples = list(builder.as_data_source(split="train"))
    assert [example["name"].decode() for example in examples] == [f"0/{i}" for i in range(50)]
    assert [example["label"] for example in examples] == [i % 3 for i in range(50)]
    assert builder.info.splits["train"].shard_lengths == [8] * 6 + [2]


def test_an_interrupted_writing_continues_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    write(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", progress=interrupted_after(29))
    assert not (tmp_path / "set").exists()
    written = [file.name for file in (tmp_path / "set.incomplete").glob("*.npz")]
    assert sorted(written) == ["train-00000.npz", "train-00001.npz", "train-00002.npz"]
    told = []
    write(tmp_path / "set", progress=told.append)
    assert told == [24] + [1] * 39  # three shards of eight were there
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    assert not (tmp_path / "set.incomplete").exists()


def test_what_was_written_of_other_images_or_is_damaged_is_written_again(tmp_path):
    write(tmp_path / "whole")

    def stop(images):
        if images == 1:
            stop.left -= 1
        if stop.left == 0:
            raise KeyboardInterrupt

    for damage in ("other images", "a damaged shard"):
        stop.left = 30
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / damage, train=49 if damage == "other images" else 50, progress=stop)
        if damage == "a damaged shard":
            file = tmp_path / f"{damage}.incomplete" / "train-00001.shard"
            file.write_bytes(file.read_bytes()[:-1] + b"?")
        write(tmp_path / damage)
        assert contents(tmp_path / damage) == contents(tmp_path / "whole")


KILLED = """
import sys
from pathlib import Path
from drawn import shards, write
if __name__ == "__main__":
    shards.EXAMPLES_PER_SHARD = 8
    write(Path(sys.argv[1]), train=400, workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_process_loses_no_shard(tmp_path, workers):
    (tmp_path / "run.py").write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path)])}
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "set"), str(workers)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    folder, deadline = tmp_path / "set.incomplete", time.time() + 120
    while len(list(folder.glob("*.npz"))) < 3:
        assert time.time() < deadline
        assert process.poll() is None, "it was over before it was killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "set").exists()
    told = []
    write(tmp_path / "set", train=400, progress=told.append)
    assert told[0] >= 24
    write(tmp_path / "whole", train=400)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_two_writers_of_one_output(tmp_path):
    def meanwhile(images):
        with pytest.raises(InputError, match=r"set\.incomplete: is being written by another process"):
            write(tmp_path / "set")

    write(tmp_path / "set", train=3, validation=3, progress=meanwhile)
    assert (tmp_path / "set").exists()


def test_the_first_error_of_a_worker_process_stops_all(tmp_path):
    splits = {"train": items(0, 40), "validation": items(1, 9)}
    splits["train"][20] = splits["train"][20]._replace(read=fail)
    with pytest.raises(InputError, match="0/20: is bad; --on_error=skip leaves such files out"):
        datasets.write(tmp_path / "set", NAMES, splits, size=24, workers=2)
    assert not (tmp_path / "set").exists()
    counts, skipped = datasets.write(tmp_path / "set", NAMES, splits, size=24, workers=2, on_error="skip")
    assert (counts, skipped) == ({"train": 39, "validation": 9}, ["0/20: is bad"])


def test_a_label_beyond_the_classes_is_an_image_that_cannot_be_used(tmp_path):
    splits = {"train": items(0, 6), "validation": items(1, 3)}
    unlabelled = splits["train"][4]
    splits["train"][4] = unlabelled._replace(label=-1, read=functools.partial(labelled, -1))
    with pytest.raises(InputError, match="0/4: has the label -1, which is none of the 3 classes"):
        datasets.write(tmp_path / "set", NAMES, splits, size=24)


def labelled(label):
    return picture(0, 0), label


def test_a_shard_of_unreadable_images_only_is_left_out(tmp_path):
    splits = {"train": items(0, 24), "validation": items(1, 9)}
    for index in range(8, 16):
        splits["train"][index] = splits["train"][index]._replace(read=fail)
    datasets.write(tmp_path / "set", NAMES, splits, size=24, on_error="skip")
    dataset = datasets.open_dataset(str(tmp_path / "set"))
    assert [example["name"] for example in dataset.splits["train"]] == [f"0/{i}" for i in [*range(8), *range(16, 24)]]


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


ONES_OWN = images.Encoding(
    as_png,
    lambda stored, out: np.copyto(out, np.asarray(Image.open(io.BytesIO(stored)))),
    lambda features, shape: features.Image(shape=shape, encoding_format="png"),
)


@pytest.mark.parametrize("encoding", [*images.ENCODINGS, "png"])
def test_every_encoding_gives_the_images_and_their_statistics(tmp_path, monkeypatch, encoding):
    monkeypatch.setitem(images.ENCODINGS, "png", ONES_OWN)
    splits = {split: items(number, 20) for number, split in enumerate(("train", "validation"))}
    datasets.write(tmp_path / "set", NAMES, splits, size=40, encoding=encoding)  # the pictures' own size
    dataset = datasets.open_dataset(str(tmp_path / "set"))
    assert dataset.encoding == encoding
    (batch,) = evaluation_batches(dataset, "train", batch_size=20)
    pictures = np.stack([picture(i % 3, i) for i in range(20)])
    if encoding != "jpeg":
        np.testing.assert_array_equal(batch.images, pictures)
    else:
        stored = [np.asarray(Image.open(io.BytesIO(example["image"]))) for example in dataset.splits["train"]]
        np.testing.assert_array_equal(batch.images, np.stack(stored))
    seen = batch.images.astype(np.float64)
    np.testing.assert_allclose(dataset.statistics.mean_image, seen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset.statistics.covariance, np.cov(seen.reshape(-1, 3).T, ddof=0), rtol=1e-9)


def test_a_record_lies_where_its_shard_is_named(tmp_path):
    write(tmp_path / "set")
    train = datasets.open_dataset(str(tmp_path / "set")).splits["train"]
    places = {index: train.place(index) for index in (0, 7, 8, 17, 49)}
    expected = {0: (0, 0), 7: (0, 7), 8: (1, 0), 17: (2, 1), 49: (6, 1)}
    for index, (shard, record) in expected.items():
        assert places[index].endswith(f"images-train.array_record-0000{shard}, record {record}")
    with pytest.raises(IndexError):
        train[50]


def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "EXAMPLES_PER_SHARD", 1)
    write(tmp_path / "set", train=150)
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1000))\n"
        "from alexnet_jax.data import datasets\n"
        "print(len(list(datasets.open_dataset(sys.argv[1]).splits['train'])))"
    )
    process = subprocess.run([sys.executable, "-c", program, tmp_path / "set"], capture_output=True, text=True)
    assert process.stdout == "150\n", process.stderr


def test_verify_names_what_is_amiss(tmp_path):
    write(tmp_path / "set")
    found = manifest.verify(tmp_path / "set")
    assert found.images["train"] == {"red": 17, "green": 17, "blue": 16}
    file = tmp_path / "set" / "images-train.array_record-00002"
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(InputError, match=re.escape(f"{file}: is not as it was written")):
        manifest.verify(tmp_path / "set")
    file.unlink()
    with pytest.raises(InputError, match=re.escape(f"{file}: is missing")):
        manifest.verify(tmp_path / "set")
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read"):
        manifest.verify(tmp_path)
