import functools
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import SIZE, picture
from PIL import Image

from alexnet_jax.data import datasets, manifest, shapes, shards
from alexnet_jax.options import InputError


def item(split, index):
    name = f"{split}/{index}"
    return shards.Item(name, name, index % 2, functools.partial(picture, index % 2, 100 * split + index))


def write(path, train=10, validation=4, **options):
    splits = {"train": [item(0, i) for i in range(train)], "validation": [item(1, i) for i in range(validation)]}
    return datasets.write(path, ["red", "green"], splits, size=SIZE, **options)


def test_any_tfds_tool_reads_it(tmp_path):
    assert write(tmp_path / "set", train=300)[0] == {"train": 300, "validation": 4}
    builder = tfds.builder_from_directory(tmp_path / "set")
    assert builder.info.features["label"].names == ["red", "green"]
    examples = list(builder.as_data_source(split="train"))
    assert len(examples) == builder.info.splits["train"].num_examples == 300
    for index, example in enumerate(examples):
        assert (example["label"], example["name"].decode()) == (index % 2, f"0/{index}")
        # A JPEG of noise at quality 95: close, and nowhere far.
        assert np.abs(example["image"].astype(int) - picture(index % 2, index)).mean() < 12


def test_statistics_are_those_of_the_stored_training_images(tmp_path):
    write(tmp_path / "set")
    dataset = datasets.open_dataset(str(tmp_path / "set"))
    stored = [Image.open(io.BytesIO(example["image"])) for example in dataset.splits["train"]]
    stored = np.stack([np.asarray(image, np.float64) for image in stored])
    np.testing.assert_allclose(dataset.statistics.mean_image, stored.mean(0), rtol=1e-12)
    covariance = np.cov(stored.reshape(-1, 3).T, ddof=0)
    np.testing.assert_allclose(dataset.statistics.covariance, covariance, rtol=1e-9)
    pca = dataset.statistics.color_pca
    np.testing.assert_allclose(pca @ pca.T, covariance, rtol=1e-9)
    assert np.allclose(pca.T @ pca, np.diag(np.diag(pca.T @ pca)))  # the components are orthogonal


def test_an_existing_output_is_not_touched(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="set: already exists"):
        write(tmp_path / "set")
    assert os.listdir(tmp_path / "set") == ["mine.txt"]


def test_an_output_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set: cannot be written"):
        write(tmp_path / "file" / "set")


def test_an_image_that_cannot_be_read_stops_or_is_left_out(tmp_path):
    def fail():
        raise ValueError("is bad")

    items = [item(0, index) for index in range(9)]
    items[7] = items[7]._replace(read=fail)
    splits = {"train": items, "validation": [item(1, 0)]}
    with pytest.raises(InputError, match="0/7: is bad; --on_error=skip"):
        datasets.write(tmp_path / "set", ["red", "green"], splits, size=SIZE)
    assert os.listdir(tmp_path) == []
    counts, skipped = datasets.write(tmp_path / "set", ["red", "green"], splits, size=SIZE, on_error="skip")
    assert (counts, skipped) == ({"train": 8, "validation": 1}, ["0/7: is bad"])


def test_a_class_without_a_training_image_is_named(tmp_path):
    splits = {"train": [item(0, 0), item(0, 2)], "validation": [item(1, 0), item(1, 1)]}
    with pytest.raises(InputError, match="class 'green' has no readable image"):
        datasets.write(tmp_path / "set", ["red", "green"], splits, size=SIZE)
    assert not (tmp_path / "set").exists()


def in_new_process(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


FULL_DISK = """
import resource, signal, sys
from test_datasets import write, InputError
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # writing beyond fails, as on a full disk
try:
    write(Path(sys.argv[1]), train=400)
except InputError as error:
    print("InputError:", error)
"""


def test_a_disk_that_is_full_leaves_nothing(tmp_path):
    path = tmp_path / "set"
    process = in_new_process(FULL_DISK, path)
    assert f"InputError: {path}.incomplete: cannot be written" in process.stdout, process.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["statistics.npz", "manifest.json"])
def test_a_folder_that_is_no_data_set_is_refused(tmp_path, damage):
    write(tmp_path / "set")
    (tmp_path / "set" / damage).unlink()
    with pytest.raises(InputError, match="not a data set that"):
        datasets.open_dataset(str(tmp_path / "set"))


def test_an_encoding_that_is_not_known_is_named(tmp_path):
    write(tmp_path / "set")
    file = tmp_path / "set" / "manifest.json"
    values = json.loads(file.read_text())
    del values["sha256"]
    file.write_text(manifest.text({**values, "encoding": "webp"}))
    with pytest.raises(InputError, match=r"cannot be read \(.*stored as 'webp', which is not known"):
        datasets.open_dataset(str(tmp_path / "set"))


def test_the_fingerprint_tells_data_sets_apart(tmp_path):
    write(tmp_path / "1")
    write(tmp_path / "2")
    write(tmp_path / "3", train=12)
    first, same, other = (datasets.open_dataset(str(tmp_path / name)).fingerprint() for name in "123")
    assert first == same != other


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="--dataset=imagenot: neither a folder nor"):
        datasets.open_dataset("imagenot")


def test_the_builtin_data_set_is_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = datasets.builtin_shapes(train=20, validation=10)
    dataset = datasets.open_dataset(str(path))
    assert dataset.class_names == tuple(shapes.SHAPES)
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 20, "validation": 10}
    assert dataset.size == 256
    written = path.stat().st_mtime_ns
    assert datasets.builtin_shapes(train=20, validation=10) == path
    assert path.stat().st_mtime_ns == written


NO_TENSORFLOW = """
import importlib, pkgutil, sys
from pathlib import Path
import alexnet_jax
from test_datasets import write, datasets
modules = [module.name for module in pkgutil.walk_packages(alexnet_jax.__path__, "alexnet_jax.")]
assert "alexnet_jax.networks.caffe" in modules
for module in modules:
    if not module.endswith("__main__"):
        importlib.import_module(module)
write(Path(sys.argv[1]))
dataset = datasets.open_dataset(sys.argv[1])
from alexnet_jax.data.input_pipeline import training_batches
from alexnet_jax.runs.log import RunLog
RunLog(Path(sys.argv[1]), first_step=0, steps=1, steps_per_epoch=1.0, batch_size=1).close()
print(len(list(training_batches(dataset, batch_size=4, seed=0, steps=range(3)))))
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch")])
"""


def test_no_tensorflow_is_imported_by_anything_and_no_pytorch(tmp_path):
    process = in_new_process(NO_TENSORFLOW, tmp_path / "set")
    assert process.stdout.splitlines()[-2:] == ["3", "[]"], process.stderr


def test_no_tensorflow_is_required():
    required = importlib.metadata.requires("alexnet_jax")
    assert required
    assert not [name for name in required if re.match(r"tensorflow(-cpu|-gpu)?\b(?!-)", name)]


def test_a_data_set_is_opened_by_a_path_too(prepared):
    assert datasets.open_dataset(prepared).name == str(prepared)  # as a run's config.json keeps it
