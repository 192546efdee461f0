"""Features of a trained network, and what is done with them: activation maps, the nearest images."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CROP, TINY
from PIL import Image

from alexnet_jax import command, features, figures
from alexnet_jax.config import Config, InputError
from alexnet_jax.data import datasets, input_pipeline
from alexnet_jax.networks import layer_outputs, network as networks, one_file
from alexnet_jax.networks.layer_outputs import features_of_split
from alexnet_jax.networks.loading import load
from alexnet_jax.paper import model
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.table import output_names
from alexnet_jax.train import fit

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import retrieval


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


def test_the_command_writes_the_features_of_files_and_of_a_split(network, dataset, tmp_path, monkeypatch, capsys):
    def write(*files, **flags):
        flags = {"workdir": str(network.source), "output": str(tmp_path / "rows.npy"), **flags}
        monkeypatch.setattr(command, "given_flags", lambda _: flags)
        features._write(files)
        return np.load(tmp_path / "rows.npy")

    images = input_pipeline.whole_split(dataset, "train").images
    (tmp_path / "photos").mkdir()
    for number in (0, 1):
        Image.fromarray(images[number]).save(tmp_path / "photos" / f"{number}.png")
    expected = outputs_of(network, images, "fc3:relu")
    found = write(str(tmp_path / "photos"))
    assert capsys.readouterr().out == f"{tmp_path / 'rows.npy'}: fc3:relu of 2 pictures, 16 each\n"
    np.testing.assert_allclose(found, expected[:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(write(dataset=str(dataset.path)), expected, rtol=1e-4, atol=1e-5)
    assert write(dataset=str(dataset.path), split="validation", layer="conv1:pool").shape == (23, 7, 7, 8)
    for files, dataset_flag in (((), ""), (("a.png",), str(dataset.path))):
        with pytest.raises(InputError, match="give pictures, or --dataset=PREPARED"):
            write(*files, dataset=dataset_flag)
    with pytest.raises(InputError, match=r"--output=rows\.txt: must end in \.npy"):
        features.Options(workdir="run", output="rows.txt")


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
