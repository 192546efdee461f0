"""Features of a trained network, and what is done with them: activation maps, the nearest images."""

import csv
import dataclasses
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CROP, TINY
from PIL import Image

from alexnet_jax import command, features, figures
from alexnet_jax.config import Config
from alexnet_jax.data import datasets, input_pipeline
from alexnet_jax.data.ahead import one_behind, read_ahead
from alexnet_jax.networks import layer_outputs, network as networks, one_file
from alexnet_jax.networks.layer_outputs import features_of_split
from alexnet_jax.networks.loading import load
from alexnet_jax.options import InputError
from alexnet_jax.paper import model
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.table import output_names
from alexnet_jax.predict import predictions
from alexnet_jax.shown import shown
from alexnet_jax.train import fit

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import retrieval

pytestmark = pytest.mark.usefixtures("quickly_compiled", "undrawn")


@pytest.fixture(scope="module")
def dataset(prepared):
    return datasets.open_dataset(str(prepared))


@pytest.fixture(scope="module")
def network(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    fit(TINY, dataset, Config(crop_size=CROP, batch_size=16, epochs=1.0), workdir, devices=jax.devices()[:1])
    return load(workdir)


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_features_are_the_inputs_of_the_next_layer_for_any_batch_size(network, dataset, tmp_path, batch_size):
    """The last layer is applied to them in NumPy: the logits must be the network's."""
    *_, hidden, last = output_names(TINY)
    found = features_of_split(network, dataset, output=hidden, batch_size=batch_size)
    file = tmp_path / "features.npy"
    on_disk = features_of_split(network, dataset, output=hidden, batch_size=batch_size, file=file)
    np.testing.assert_array_equal(np.load(file), found)
    np.testing.assert_array_equal(on_disk, found)
    of_last = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network.params[last])
    logits = found.reshape(len(found), -1).astype(np.float64) @ of_last["kernel"] + of_last["bias"]
    batch = input_pipeline.whole_split(dataset, "train")
    expected = network.make_logits()(network.params, jnp.asarray(batch.images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    # Those that images are compared by are the same, before dropout, which in test mode halves them.
    before_dropout = features_of_split(network, dataset, output=layer_outputs.last_hidden(network))
    np.testing.assert_allclose(found, 0.5 * before_dropout, rtol=1e-4, atol=1e-5)


def outputs_of(network, images, name):
    return network.make_outputs([name])(network.params, jnp.asarray(images))[name]


def test_features_of_another_split_and_of_a_convolution(network, dataset):
    found = features_of_split(network, dataset, "validation", output="conv1:pool", batch_size=7)
    images = input_pipeline.whole_split(dataset, "validation").images
    expected = outputs_of(network, images, "conv1:pool")
    assert found.shape == (23, *model.summary(TINY, CROP)[0].output_shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_features_of_files_are_those_of_their_pixels(network, dataset, tmp_path, monkeypatch):
    images = input_pipeline.whole_split(dataset, "validation").images[:5]
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    expected = outputs_of(network, images, "fc3:relu")
    monkeypatch.setattr(networks, "BATCH", 2)
    network = dataclasses.replace(network)  # which has compiled nothing yet
    for of in (files, [str(file) for file in files], images):
        found = network.features(of, ["fc3:relu"])["fc3:relu"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    low = dataclasses.replace(network, net=AlexNet(TINY, jnp.dtype("bfloat16")))
    assert low.features(files, ["fc3:relu"])["fc3:relu"].dtype == np.float32
    with pytest.raises(InputError, match="no picture is given"):
        network.features([], ["fc3:relu"])
    files[1].write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1\.png"):
        network.features(files, ["fc3:relu"])


def test_every_output_is_had_by_its_name_several_at_once(network, dataset):
    """They are those of the formulas, of the network without what is tuned here."""
    images = input_pipeline.whole_split(dataset, "validation").images[:3]
    names = output_names(TINY)
    found = network.features(images, names)
    border = (network.size - CROP) // 2
    views = (images - network.mean_image)[:, border : border + CROP, border : border + CROP].astype(np.float32)
    expected = model.outputs(AlexNet(TINY), {"params": network.params}, jnp.asarray(views), names)
    assert [*found] == names
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_what_is_not_there_is_named(network, dataset):
    with pytest.raises(InputError, match=r"no output fc77; there are conv1, conv1:relu, "):
        features_of_split(network, dataset, output="fc77")
    with pytest.raises(InputError, match=r"no output fc77; there are conv1, conv1:relu, "):
        network.features(np.zeros((1, 40, 40, 3), np.uint8), ["fc77"])
    with pytest.raises(InputError, match="no split test; there are train, validation"):
        features_of_split(network, dataset, "test", output="conv1")
    with pytest.raises(InputError, match="is for images of"):
        features_of_split(network, datasets.open_dataset("shapes"), output="conv1")


NAMES = ("conv1:pool", "fc3:relu", "fc4")  # of most tests, so that few programs are compiled


@pytest.fixture(scope="module")
def expected(network, dataset):
    """Of the training images."""
    return network.features(input_pipeline.whole_split(dataset, "train").images, NAMES)


@pytest.fixture
def write(network, tmp_path, monkeypatch):
    """The command; by default it writes rows.npy."""

    def write(*files, **flags):
        flags = {"workdir": str(network.source), "output": str(tmp_path / "rows.npy"), **flags}
        monkeypatch.setattr(command, "given_flags", lambda _: flags)
        features._write(files)
        return tmp_path / "rows.npy"

    return write


def some_files(dataset, folder, count):
    """Of training images; the names of some cannot be shown."""
    folder.mkdir()
    files = [folder / (f"{number:02}.png" if number % 3 else f"{number:02}\n\x1b.png") for number in range(count)]
    for file, image in zip(files, input_pipeline.whole_split(dataset, "train").images, strict=False):
        Image.fromarray(image).save(file)
    return files


def test_the_command_writes_the_features_of_files_and_of_a_split(dataset, expected, tmp_path, capsys, write):
    some_files(dataset, tmp_path / "photos", 2)
    found = np.load(write(str(tmp_path / "photos")))
    assert capsys.readouterr().out == f"{tmp_path / 'rows.npy'}: fc3:relu of 2 pictures, 16 each\n"
    np.testing.assert_allclose(found, expected["fc3:relu"][:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.load(write(dataset=str(dataset.path))), expected["fc3:relu"], rtol=1e-4, atol=1e-5)
    assert (tmp_path / "rows.csv").read_text().splitlines()[:4] == ["class", "red", "green", "blue"]
    rows = np.load(write(dataset=str(dataset.path), split="validation", layers=("conv1:pool",)))
    assert rows.shape == (23, 7, 7, 8)
    for files, dataset_flag in (((), ""), (("a.png",), str(dataset.path))):
        with pytest.raises(InputError, match="give pictures, or --dataset=PREPARED"):
            write(*files, dataset=dataset_flag)
    with pytest.raises(InputError, match=r"--output=rows\.txt: must end in \.npz or \.npy"):
        features.Options(workdir="run", output="rows.txt")
    with pytest.raises(InputError, match="--layers=fc3,fc3: names one twice"):
        features.Options(workdir="run", output="rows.npy", layers=("fc3", "fc3"))


@pytest.mark.parametrize("count", [1, 16, 17])  # a batch has 16
def test_several_layers_in_one_pass_for_any_number_of_files(dataset, expected, tmp_path, monkeypatch, write, count):
    files = some_files(dataset, tmp_path / "photos", count)
    read = []
    monkeypatch.setattr(networks.Trained, "preprocess", spied(networks.Trained.preprocess, read))
    write(str(tmp_path / "photos"), layers=NAMES, output=str(tmp_path / "f.npz"))
    assert sorted(read) == sorted(map(str, files))  # each once
    write(str(tmp_path / "photos"), layers=NAMES)
    with np.load(tmp_path / "f.npz") as opened:
        archive = {name: opened[name] for name in opened.files}
    assert [*archive] == [*NAMES]
    for name in NAMES:
        np.testing.assert_allclose(archive[name], expected[name][:count], rtol=1e-4, atol=1e-5)
        part = np.load(tmp_path / f"rows-{name.replace(':', '-')}.npy", mmap_mode="r")
        assert isinstance(part, np.memmap)
        np.testing.assert_array_equal(part, archive[name])
    rows = [*csv.reader((tmp_path / "f.csv").read_text().splitlines())]
    assert rows == [["file"], *([shown(file)] for file in sorted(map(str, files)))]
    assert (tmp_path / "rows.csv").read_text() == (tmp_path / "f.csv").read_text()
    written = {"f.npz", "f.csv", "rows.csv", "rows-conv1-pool.npy", "rows-fc3-relu.npy", "rows-fc4.npy", "photos"}
    assert {file.name for file in tmp_path.iterdir()} == written  # nothing that is half done


def test_a_full_disk_leaves_nothing_that_is_half_done(dataset, tmp_path, write):
    some_files(dataset, tmp_path / "photos", 1)
    for partial in ("f-conv1-pool.part.partial", "f.npz.partial"):
        (tmp_path / partial).symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            write(str(tmp_path / "photos"), layers=NAMES, output=str(tmp_path / "f.npz"))
        assert {file.name for file in tmp_path.iterdir()} == {"photos"}


def spied(function, seen):
    def spy(self, picture, *arguments):
        seen.append(str(picture))
        return function(self, picture, *arguments)

    return spy


def test_a_file_that_cannot_be_read_has_no_row(dataset, expected, tmp_path, capsys, write):
    files = some_files(dataset, tmp_path / "photos", 18)
    for number in (1, 16):
        files[number].write_bytes(b"no picture")
    with pytest.raises(InputError, match="2 of 18 pictures cannot be read"):
        write(*map(str, files), layers=NAMES)
    assert f"error: {files[1]}: is not an image" in capsys.readouterr().err
    for name in NAMES:
        rows = np.load(tmp_path / f"rows-{name.replace(':', '-')}.npy")
        np.testing.assert_allclose(rows, np.delete(expected[name][:18], (1, 16), axis=0), rtol=1e-4, atol=1e-5)
    kept = [shown(file) for number, file in enumerate(files) if number not in (1, 16)]
    assert [*csv.reader((tmp_path / "rows.csv").read_text().splitlines())] == [["file"], *([name] for name in kept)]
    for file in tmp_path.glob("rows*"):
        file.unlink()
    with pytest.raises(InputError, match="1 of 1 pictures cannot be read"):
        write(str(files[1]), layers=NAMES)
    assert {file.name for file in tmp_path.iterdir()} == {"photos"}
    with pytest.raises(InputError, match="no output fc77"):
        write(str(files[0]), layers=("fc77",))


def test_all_outputs_are_listed_with_their_shapes(network, expected, capsys, write):
    write(layers=("help",), output="")
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert [*listed] == output_names(TINY)
    for name in NAMES:
        assert listed[name] == " × ".join(map(str, expected[name].shape[1:]))


def test_pictures_of_ones_own_go_through_the_same_preprocessing(network, tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((60, 80, 3), (33, 90), (40, 40, 3))]
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, pixels in zip(files, pictures, strict=True):
        Image.fromarray(pixels).save(file)
    contents = [file.read_bytes() for file in files]
    alike = np.stack([network.preprocess(file) for file in files])
    one_size = np.stack([pictures[0]] * 3)
    for of, like in (
        (files, alike), (pictures, alike), ([str(file) for file in files], alike), (one_size, alike[[0, 0, 0]]),
        ([files[0], contents[1], pictures[2]], alike), (jnp.asarray(one_size), alike[[0, 0, 0]]),
    ):  # fmt: skip
        ((images, read),) = network.read(of)
        np.testing.assert_array_equal(images, like)
        np.testing.assert_array_equal(read, like)
    assert network.features(pictures, NAMES)["fc4"].shape == (3, 3)
    for wrong in (np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8), b"none"):
        with pytest.raises(InputError, match="picture 1: "):
            network.features([pictures[0], wrong, pictures[2]], NAMES)


def test_what_is_begun_is_looked_at_once_the_next_is_begun_and_where_that_fails():
    began, seen = [], []

    def batches():
        for number in range(3):
            began.append(number)
            yield number
        raise OSError("the next one")

    def look():
        for number in one_behind(batches()):
            seen.append((number, len(began)))

    with pytest.raises(OSError, match="the next one"):
        look()
    assert seen == [(0, 2), (1, 3), (2, 3)]
    assert [*one_behind(iter("ab"))] == ["a", "b"]


def test_reading_ahead_keeps_the_order_and_ends_with_its_reader():
    begun = []

    def read(item):
        begun.append(item)
        time.sleep(0.001 * (item % 3))
        return -item

    assert [*read_ahead(read, range(50), ahead=7)] == [-item for item in range(50)]
    assert sorted(begun) == [*range(50)]
    begun.clear()
    before = threading.active_count()
    some = read_ahead(read, range(10_000), ahead=4)
    assert [next(some), next(some)] == [0, -1]
    some.close()
    assert len(begun) <= 6
    assert threading.active_count() <= before


@pytest.mark.parametrize("of", ["predict", "features"])
def test_answers_are_looked_at_once_the_next_batch_has_begun(of):
    """Else a device would wait for what is done with them."""
    events = []

    class Answers(NamedTuple):
        batch: int

        def __array__(self, *_, **__):
            events.append(f"look at {self.batch}")
            return np.zeros((2, 3), np.float32)

    def begun(batch):
        events.append(f"begin {batch}")
        return Answers(batch)

    network = types.SimpleNamespace(
        read=lambda *_, **__: ((batch, []) for batch in range(3)),
        probabilities=lambda images, views: begun(images),
        _compiled={("fc7",): lambda params, images: {"fc7": begun(images)}},
        params={},
    )
    answers = {
        "predict": lambda: predictions(network, []),
        "features": lambda: networks.Trained.features_in_batches(network, ["a.jpg"], ["fc7"]),
    }
    list(answers[of]())
    assert events == ["begin 0", "begin 1", "look at 0", "begin 2", "look at 1", "look at 2"]


def test_the_nearest_of_a_training_image_is_itself(network, dataset):
    stored = retrieval.kept_features(network, dataset)
    file = retrieval.kept_features(network, dataset).filename
    assert [Path(file)] == list(network.source.glob("features_*.npy"))
    order, distances = retrieval.nearest(stored, np.asarray(stored), 3)
    assert order[:, 0].tolist() == list(range(50))
    assert not distances[:, 0].any()
    assert (distances[:, 1] > 0).all()


def test_the_nearest_are_those_of_scipy(monkeypatch):
    spatial = pytest.importorskip("scipy.spatial")
    monkeypatch.setattr(retrieval, "ROWS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    stored, queries = (rng.normal(size=(count, 5)).astype(np.float32) for count in (40, 6))
    expected_distances, expected = spatial.KDTree(stored.astype(np.float64)).query(queries.astype(np.float64), k=4)
    order, distances = retrieval.nearest(stored, queries, 4)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-12)


def test_kept_features_are_of_one_checkpoint_and_data_set_and_whole(network, dataset, tmp_path, monkeypatch):
    network = dataclasses.replace(network, source=tmp_path)
    assert layer_outputs.last_hidden(network) == "fc3:relu"
    expected, batches = features_of_split(network, dataset, output="fc3:relu"), input_pipeline.evaluation_batches

    def cut_off(*arguments, **options):
        for batch in batches(*arguments, **options):
            yield batch._replace(images=np.zeros_like(batch.images))
        raise OSError("cut off")

    monkeypatch.setattr(input_pipeline, "evaluation_batches", cut_off)
    with pytest.raises(OSError, match="cut off"):
        retrieval.kept_features(network, dataset)
    monkeypatch.setattr(input_pipeline, "evaluation_batches", batches)
    np.testing.assert_array_equal(retrieval.kept_features(network, dataset), expected)  # not what was cut off
    monkeypatch.setattr(input_pipeline, "evaluation_batches", cut_off)
    np.testing.assert_array_equal(retrieval.kept_features(network, dataset), expected)
    with pytest.raises(OSError, match="cut off"):
        retrieval.kept_features(dataclasses.replace(network, step=network.step + 1), dataset)
    monkeypatch.setattr(datasets.Dataset, "fingerprint", lambda _: "other")
    with pytest.raises(OSError, match="cut off"):
        retrieval.kept_features(network, dataset)


def test_the_command_shows_the_nearest_training_images(network, dataset, prepared, tmp_path, monkeypatch, capsys):
    image = input_pipeline.whole_split(dataset, "train").images[1]
    Image.fromarray(image).save(tmp_path / "a.png")
    drawn = []
    monkeypatch.setattr(figures, "save_neighbors", lambda *arguments: drawn.append(arguments))
    arguments = ["retrieval", f"--workdir={network.source}", f"--figure={tmp_path / 'n.png'}"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "a.png")])
    retrieval.main()
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.png'}: green (0.0), ")
    ((_, (nearest,), _),) = drawn
    assert len(nearest) == 6
    np.testing.assert_array_equal(nearest[0], image)
    monkeypatch.setattr(sys, "argv", [*arguments, "--checkpoint=7"])
    with pytest.raises(SystemExit, match="has no checkpoint '7'"):
        retrieval.main()
    # A network in one file has no folder for the features, and does not say where its images are.
    one_file.save(network, tmp_path / "a.safetensors")
    arguments[1] = f"--workdir={tmp_path / 'a.safetensors'}"
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "a.png"), f"--dataset={prepared}"])
    retrieval.main()
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.png'}: green (0.0), ")
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"--dataset=PATH is needed: .*a\.safetensors does not say"):
        retrieval.main()


def test_bad_arguments_of_the_retrieval_are_one_line(tmp_path):
    command = [sys.executable, retrieval.__file__, f"--workdir={tmp_path}", "--figure=a.png"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == f"error: {tmp_path}: there is no run (no config.json)\n"
