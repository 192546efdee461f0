"""Features of a trained network, and what is done with them: activation maps, the nearest images."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CROP, TINY

from alexnet_jax import datasets, features, input_pipeline, train, trained
from alexnet_jax.architectures import ARCHITECTURES, named
from alexnet_jax.config import Config, InputError

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
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


def test_bad_arguments_of_the_retrieval_are_one_line(tmp_path):
    command = [sys.executable, retrieval.__file__, f"--workdir={tmp_path}", "--figure=a.png"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == f"error: {tmp_path}: there is no run (no config.json)\n"
