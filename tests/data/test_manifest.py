"""The manifest of a prepared data set: every file is in it; whatever is changed is named; nothing is ever imported."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from test_datasets import write

from alexnet_jax.data import archives, datasets, manifest
from alexnet_jax.options import InputError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "set"
    write(path)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    for file in whole.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


FILES = (
    "manifest.json", "statistics.npz", "features.json", "dataset_info.json", "label.labels.txt",
    "images-train.array_record-00000", "images-validation.array_record-00000",
)  # fmt: skip


def test_these_are_all_files(whole):
    assert sorted(os.listdir(whole)) == sorted(FILES)
    found = manifest.verify(whole)
    assert {*found.files, *found.shards, "manifest.json"} == set(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["a byte", "cut off", "empty", "missing", "longer", "a pipe", "a folder"])
def test_verify_names_each_file_that_is_not_as_it_was(copy, name, damage):
    file = copy / name
    content = file.read_bytes()
    middle = len(content) // 2
    if damage in ("missing", "a pipe", "a folder"):
        file.unlink()
        if damage == "a pipe":
            os.mkfifo(file)
        elif damage == "a folder":
            file.mkdir()
    else:
        file.write_bytes({
            "a byte": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "cut off": content[:-1], "empty": b"", "longer": content + b"\n",
        }[damage])  # fmt: skip
    if (name, damage) in (("manifest.json", "longer"), ("manifest.json", "cut off")):
        manifest.verify(copy)  # a line more or less at the end says nothing else
        return
    with pytest.raises(InputError, match=re.escape(str(file))):
        manifest.verify(copy)


def test_verify_names_a_file_that_is_none_of_it(copy):
    (copy / ".DS_Store").touch()
    manifest.verify(copy)
    (copy / "evil.py").write_text("open('ran', 'w')")
    with pytest.raises(InputError, match=r"evil\.py: is no file of this data set"):
        manifest.verify(copy)


def test_classes_that_are_exchanged_in_the_manifest(copy):
    file = copy / "manifest.json"
    file.write_text(file.read_text().replace('"red"', '"?"').replace('"green"', '"red"').replace('"?"', '"green"'))
    for look in (manifest.verify, datasets.open_dataset):
        with pytest.raises(InputError, match=r"manifest\.json: cannot be read \(sha256: it is not as it was written\)"):
            look(copy)


def test_a_data_set_of_version_01_is_read_and_verified(copy, capsys):
    """Its manifest lists the shards only, and has no digest of itself."""
    file = copy / "manifest.json"
    values = json.loads(file.read_text())
    old = {"version": 1, **{name: values[name] for name in ("encoding", "images", "shards")}}
    file.write_text(json.dumps(old, indent=1) + "\n")
    assert datasets.open_dataset(copy).class_names == ("red", "green")
    from alexnet_jax import prepare

    prepare.verify(str(copy))
    assert "lists the shards only" in capsys.readouterr().out


def changed(values, path, value):
    *way, last = path
    for step in way:
        values = values[step]
    if value is None:
        del values[last]
    else:
        values[last] = value


SHARD = "images-train.array_record-00000"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["encoding"], None), (["encoding"], 5), (["encoding"], ["jpeg"]), (["encoding"], "gif"), (["images"], None),
        (["images"], []), (["images", "train"], None), (["images", "validation"], None), (["images", "train"], 7),
        (["images", "train", "red"], -1), (["images", "train", "red"], 6), (["images", "train", "red"], 10**30),
        (["images", "train", "red"], 5.0), (["images", "train", "red"], True), (["images", "train", "blue"], 0),
        (["images", "../x"], {"red": 0, "green": 0}), (["shards"], None), (["shards"], "all"), (["shards", SHARD], {}),
        (["shards", SHARD], None), (["shards", SHARD, "images"], -10), (["shards", SHARD, "images"], 10**9),
        (["shards", SHARD, "images"], "10"), (["shards", SHARD, "sha256"], 1), (["shards", "../../etc/passwd"], {}),
        (["shards", "x"], {"sha256": "", "images": 0}), (["shards", ""], {"sha256": "", "images": 0}),
        (["shards", f"{SHARD}/../x"], {"sha256": "", "images": 0}), (["files", "../statistics.npz"], "0"),
        (["files", "statistics.npz"], 5), (["files"], [1]),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(copy, path, value):
    file = copy / "manifest.json"
    values = json.loads(file.read_text())
    del values["sha256"]
    changed(values, path, value)
    file.write_text(manifest.text(values))
    for look in (manifest.verify, datasets.open_dataset):
        with pytest.raises(InputError, match=r"manifest\.json: cannot be read") as caught:
            look(copy)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b"{}", b"1" * 99])
def test_a_manifest_that_is_none(copy, content):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read"):
        datasets.open_dataset(copy)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mean_image": np.zeros((40, 40, 3))}, {"mean_image": np.zeros((40, 41, 3)), "covariance": np.eye(3)},
        {"mean_image": np.zeros((40, 40, 3)), "covariance": np.eye(4)},
        {"mean_image": np.float64(1), "covariance": 1.0},
        {"mean_image": np.full((40, 40, 3), np.nan), "covariance": np.eye(3)},
        {"mean_image": np.zeros((40, 40, 3), np.int8), "covariance": np.eye(3)},
        {"mean_image": np.array([None]), "covariance": np.eye(3)},
    ],
)  # fmt: skip
def test_statistics_that_are_none(copy, arrays):
    np.savez(copy / "statistics.npz", **arrays)
    with pytest.raises(InputError, match="is not a data set that") as caught:
        datasets.open_dataset(copy)
    assert "\n" not in str(caught.value)


def test_more_images_than_a_shard_holds_are_named_where_they_are_read(copy):
    file = copy / "manifest.json"
    values = json.loads(file.read_text())
    del values["sha256"]
    values["images"]["train"]["red"] += 5
    values["shards"][SHARD]["images"] += 5
    file.write_text(manifest.text(values))
    train = datasets.open_dataset(copy).splits["train"]
    with pytest.raises(InputError, match=re.escape(f"{SHARD}, record 12: cannot be read")):
        train[12]


# Nothing is imported


def with_evil(folder, name, how):
    (folder / "evil.py").write_text("open('ran', 'w')\nclass X: pass\n")
    file = folder / "features.json"
    if how == "JSON in JSON":
        inner = json.dumps({"feature": {"type": name, "content": {}}, "length": 5})
        own = "tensorflow_datasets.core.features.sequence_feature.Sequence"
        file.write_text(json.dumps({"pythonClassName": own, "jsonFeature": {"json": inner}}))
        return
    text = file.read_text()
    own = re.search(r'"pythonClassName": "([^"]*)"', text)[1]
    value = {
        "by its name": f'"pythonClassName": "{name}"',
        "escaped": '"pythonClassName": "' + "".join(f"\\u{ord(sign):04x}" for sign in name) + '"',
        "as protobuf has it": f'"python_class_name": "{name}"',
        "as it was once": f'"content": {{}}, "type": "{name}"',
    }[how]
    file.write_text(text.replace(f'"pythonClassName": "{own}"', value, 1))


HOW = ("by its name", "escaped", "as protobuf has it", "as it was once", "JSON in JSON")


@pytest.mark.parametrize("how", HOW)
def test_a_data_set_is_read_without_an_import(copy, monkeypatch, how):
    with_evil(copy, "set.evil.X", how)
    monkeypatch.chdir(copy.parent)
    monkeypatch.syspath_prepend(str(copy.parent))
    dataset = datasets.open_dataset(copy)
    assert [example["label"] for example in dataset.splits["train"]] == [0, 1] * 5
    assert not os.path.exists("ran")
    assert "set.evil" not in sys.modules


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["flowers.evil.X", "os.path.X", "tensorflow_datasets.core.features.../evil", "evil.X"])
def test_a_tfds_data_set_imports_none_but_tfds_own_features(copy, tmp_path, monkeypatch, how, name):
    folder = tmp_path / "data" / "images" / "1.0.0"
    folder.parent.mkdir(parents=True)
    copy.rename(folder)
    assert archives.recognised("tfds:images", str(tmp_path / "data"), tmp_path).class_names == ("red", "green")
    with_evil(folder, name, how)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(InputError, match="--source=tfds:images: no array_record data set of labelled images"):
        archives.recognised("tfds:images", str(tmp_path / "data"), tmp_path)
    assert not os.path.exists("ran")
    assert "evil" not in sys.modules


def test_training_asks_tfds_for_nothing(whole):
    """Of a data set that is opened and read, TFDS's own reading has no part."""
    program = (
        "import sys\nimport tensorflow_datasets as tfds\n"
        "def fail(*arguments, **others): raise AssertionError\n"
        "tfds.builder_from_directory = tfds.builder_from_directories = tfds.builder = tfds.load = fail\n"
        "from alexnet_jax.data.datasets import open_dataset\n"
        "print(len(list(open_dataset(sys.argv[1]).splits['train'])))"
    )
    process = subprocess.run([sys.executable, "-c", program, whole], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout == "10\n", process.stderr
    assert tfds.builder_from_directory(whole).info.splits["train"].num_examples == 10  # and yet any tool reads it
