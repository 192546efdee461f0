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

from alexnet_jax import figures, train, weights
from alexnet_jax.config import Config, InputError
from alexnet_jax.data import datasets, input_pipeline
from alexnet_jax.networks import layer_outputs as features
from alexnet_jax.networks import network as trained
from alexnet_jax.paper import model
from alexnet_jax.paper.architectures import ARCHITECTURES, named
from alexnet_jax.paper.model import AlexNet

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import retrieval


@pytest.fixture(scope="module")
def network(prepared, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny", TINY)
        config = Config(architecture="tiny", dataset=str(prepared), crop_size=CROP, batch_size=16, epochs=1.0)
        workdir = tmp_path_factory.mktemp("runs") / "run"
        train.train_and_evaluate(config, workdir, devices=jax.devices()[:1])
        yield trained.load(workdir)


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_features_are_the_inputs_of_the_next_layer_for_any_batch_size(network, prepared, tmp_path, batch_size):
    """The last layer is applied to them in NumPy: the logits must be the network's."""
    dataset = datasets.open_dataset(str(prepared))
    *_, hidden, last = named(TINY)
    found = features.features(network, dataset, layer=hidden, batch_size=batch_size)
    file = tmp_path / "features.npy"
    features.features(network, dataset, layer=hidden, batch_size=batch_size, file=file)
    np.testing.assert_array_equal(np.load(file), found)
    of_last = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network.params[last])
    logits = found.reshape(len(found), -1).astype(np.float64) @ of_last["kernel"] + of_last["bias"]
    batch = input_pipeline.whole_split(dataset, "train")
    expected = network.make_logits()(network.params, jnp.asarray(batch.images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_features_of_another_split_and_of_a_convolution(network, prepared):
    dataset = datasets.open_dataset(str(prepared))
    found = features.features(network, dataset, "validation", layer="conv1", batch_size=7)
    images = input_pipeline.whole_split(dataset, "validation").images
    expected = features.make_features(network, "conv1")(network.params, jnp.asarray(images))
    assert found.shape == (23, *model.summary(TINY, CROP)[0].output_shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_features_of_files_are_those_of_their_pixels(network, prepared, tmp_path):
    images = input_pipeline.whole_split(datasets.open_dataset(str(prepared)), "validation").images[:5]
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    expected = features.make_features(network, "fc3")(network.params, jnp.asarray(images))
    found = features.of_files(network, files, layer="fc3", batch_size=2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    low = dataclasses.replace(network, net=AlexNet(TINY, jnp.dtype("bfloat16")))
    assert features.of_files(low, files, layer="fc3").dtype == np.float32
    with pytest.raises(InputError, match="no picture is given"):
        features.of_files(network, [], layer="fc3")


def test_what_is_not_there_is_named(network, prepared):
    dataset = datasets.open_dataset(str(prepared))
    with pytest.raises(InputError, match=r"no layer fc77; there are conv1, "):
        features.features(network, dataset, layer="fc77")
    with pytest.raises(InputError, match="no split test; there are train, validation"):
        features.features(network, dataset, "test", layer="conv1")
    with pytest.raises(InputError, match="is for images of"):
        features.features(network, datasets.open_dataset("shapes"), layer="conv1")


def test_the_nearest_of_a_training_image_is_itself(network, prepared):
    dataset = datasets.open_dataset(str(prepared))
    stored = retrieval.kept_features(network, dataset)
    file = retrieval.kept_features(network, dataset).filename
    assert [Path(file)] == list(network.workdir.glob("features_*.npy"))
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


def test_kept_features_are_of_one_checkpoint_and_data_set_and_whole(network, prepared, tmp_path, monkeypatch):
    network, dataset = dataclasses.replace(network, workdir=tmp_path), datasets.open_dataset(str(prepared))
    assert features.last_hidden(network) == "fc3"

    def cut_off(*_, file, **__):
        Path(file).write_bytes(b"half")
        raise OSError("cut off")

    monkeypatch.setattr(retrieval, "features", cut_off)
    with pytest.raises(OSError, match="cut off"):
        retrieval.kept_features(network, dataset)
    monkeypatch.setattr(retrieval, "features", features.features)
    assert retrieval.kept_features(network, dataset).shape == (50, 16)  # not the half of it
    monkeypatch.setattr(retrieval, "features", cut_off)
    retrieval.kept_features(network, dataset)
    with pytest.raises(OSError, match="cut off"):
        retrieval.kept_features(dataclasses.replace(network, step=network.step + 1), dataset)
    monkeypatch.setattr(datasets.Dataset, "fingerprint", lambda _: "other")
    with pytest.raises(OSError, match="cut off"):
        retrieval.kept_features(network, dataset)


def test_the_command_shows_the_nearest_training_images(network, prepared, tmp_path, monkeypatch, capsys):
    image = input_pipeline.whole_split(datasets.open_dataset(str(prepared)), "train").images[1]
    Image.fromarray(image).save(tmp_path / "a.png")
    drawn = []
    monkeypatch.setattr(figures, "save_neighbors", lambda *arguments: drawn.append(arguments))
    arguments = ["retrieval", f"--workdir={network.workdir}", f"--figure={tmp_path / 'n.png'}"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "a.png")])
    retrieval.main()
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.png'}: green (0.0), ")
    ((_, (nearest,), _),) = drawn
    assert len(nearest) == 6
    np.testing.assert_array_equal(nearest[0], image)
    monkeypatch.setattr(sys, "argv", [*arguments, "--checkpoint=7"])
    with pytest.raises(SystemExit, match="has no checkpoint '7'"):
        retrieval.main()
    # A network in one file has no folder for the features, and does not tell where its images are.
    weights.save(network, tmp_path / "a.safetensors")
    arguments[1] = f"--workdir={tmp_path / 'a.safetensors'}"
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "a.png"), f"--dataset={prepared}"])
    retrieval.main()
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.png'}: green (0.0), ")
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"--dataset=PATH is needed: .*a\.safetensors does not tell"):
        retrieval.main()


def test_bad_arguments_of_the_retrieval_are_one_line(tmp_path):
    command = [sys.executable, retrieval.__file__, f"--workdir={tmp_path}", "--figure=a.png"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == f"error: {tmp_path}: there is no run (no config.json)\n"
