"""§6's pre-training: a run that begins with the parameters of another."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import CROP, TINY, picture

from alexnet_jax.config import Config
from alexnet_jax.data import datasets, shards
from alexnet_jax.device.tuned import tuned
from alexnet_jax.networks import one_file, pretrained
from alexnet_jax.networks.loading import load
from alexnet_jax.networks.network import Trained
from alexnet_jax.networks.transfer import find_origin, table_of_origin
from alexnet_jax.options import InputError
from alexnet_jax.paper.architectures import TORCHVISION
from alexnet_jax.paper.layers import relu
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.table import with_classes, with_layers, with_steps
from alexnet_jax.paper.train_state import shapes_of_params
from alexnet_jax.runs.checkpoint import Checkpoints
from alexnet_jax.train import fit

pytestmark = pytest.mark.usefixtures("quickly_compiled", "undrawn")
TWO_CLASSES = with_classes(TINY, 2)
WIDER = with_layers(TWO_CLASSES, conv1={"features": 16}, conv2={"features": 12}, fc3={"features": 20})


def train(layers, dataset, config, workdir):
    return fit(layers, dataset, config, workdir, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def colors(prepared):
    """Images of three classes."""
    return datasets.open_dataset(str(prepared))


@pytest.fixture(scope="module")
def origin(colors, tmp_path_factory):
    """A run on them."""
    workdir = tmp_path_factory.mktemp("origin") / "run"
    train(TINY, colors, Config(crop_size=CROP, batch_size=16, epochs=2.0, learning_rate=0.002), workdir)
    return workdir


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Other images, of two classes."""

    def item(split, index):
        return shards.Item(f"{split}/{index}", "", index % 2, functools.partial(picture, index % 2, 99 * split + index))

    path = tmp_path_factory.mktemp("others") / "set"
    splits = {
        split: [item(number, index) for index in range(20)] for number, split in enumerate(("train", "validation"))
    }
    datasets.write(path, ["rose", "leaf"], splits, size=40)
    return datasets.open_dataset(str(path))


@pytest.fixture
def config(origin):
    return Config(crop_size=CROP, batch_size=10, epochs=2.0, learning_rate=0.002, init_from=str(origin))


def params(workdir):
    return jax.tree.map(np.asarray, load(workdir).params)


def test_layers_are_taken_over_but_the_last_whose_classes_are_others(config, others, origin, tmp_path, capsys):
    train(TWO_CLASSES, others, dataclasses.replace(config, taken_rate_scale=0.0), tmp_path)
    facts = json.loads((tmp_path / "init.json").read_text())
    taken = [f"{layer}/{kind}" for layer in ("conv1", "conv2", "fc3") for kind in ("bias", "kernel")]
    assert facts == {"from": f"{origin}, step 6", "taken": taken, "new": ["fc4/bias", "fc4/kernel"]}
    assert f"{origin}, step 6: {', '.join(taken)}; new: fc4/bias, fc4/kernel" in capsys.readouterr().out
    before, after = params(origin), params(tmp_path)
    for layer in ("conv1", "conv2", "fc3"):
        jax.tree.map(np.testing.assert_array_equal, before[layer], after[layer])
    assert after["fc4"]["kernel"].shape == (16, 2)


def test_where_the_classes_are_the_same_the_last_layer_is_taken_too(config, colors, tmp_path):
    find_origin(config, tmp_path, AlexNet(TINY), colors).keep(tmp_path)
    assert json.loads((tmp_path / "init.json").read_text())["new"] == []


def test_what_is_taken_learns_at_a_tenth_of_the_rate_and_what_is_frozen_not_at_all(config, others, origin, tmp_path):
    moves = {}
    for scale, frozen in ((1.0, ()), (0.1, ("conv2",))):
        run = dataclasses.replace(config, epochs=0.5, taken_rate_scale=scale, frozen_layers=frozen)  # one step
        train(TWO_CLASSES, others, run, tmp_path / str(scale))
        after = params(tmp_path / str(scale))
        moves[scale] = {
            layer: after[layer]["kernel"] - params(origin)[layer]["kernel"] for layer in ("conv1", "conv2", "fc3")
        }
        moves[scale]["fc4"] = after["fc4"]["kernel"]
    for layer in ("conv1", "fc3"):
        assert np.abs(moves[1.0][layer]).max() > 1e-6
        np.testing.assert_allclose(moves[0.1][layer], 0.1 * moves[1.0][layer], atol=2e-8)
    assert not moves[0.1]["conv2"].any()
    np.testing.assert_array_equal(moves[0.1]["fc4"], moves[1.0]["fc4"])


@pytest.mark.slow
def test_a_run_goes_on_without_the_one_that_it_began_with(config, others, origin, tmp_path):
    copy = tmp_path / "origin"
    shutil.copytree(origin, copy)
    config = dataclasses.replace(config, init_from=str(copy), epochs=0.5, frozen_layers=("conv2",))
    first = train(TWO_CLASSES, others, config, tmp_path / "run")
    shutil.rmtree(copy)
    assert train(TWO_CLASSES, others, config, tmp_path / "run") == first
    np.testing.assert_array_equal(params(tmp_path / "run")["conv2"]["kernel"], params(origin)["conv2"]["kernel"])


def test_the_table_is_known_without_the_parameters(origin, tmp_path, monkeypatch):
    one_file.save(load(origin), tmp_path / "a.safetensors")
    for owner, name in ((Checkpoints, "restore_params"), (one_file, "read_safetensors"), (pretrained, "fetched")):
        monkeypatch.setattr(owner, name, None)
    for source in (origin, tmp_path / "a.safetensors"):
        assert table_of_origin(str(source), tmp_path / "run") == (TINY, CROP)
    assert table_of_origin("torchvision", tmp_path / "run") == (TORCHVISION, 224)


def own_step(x, *, slope=0.5):
    return x * slope


def test_a_network_with_steps_of_ones_own_is_a_beginning_too(config, colors, tmp_path):
    """For one with the same steps, whatever else differs."""
    layers = with_steps(TINY, {relu: own_step})
    net, file = AlexNet(layers), tmp_path / "own.safetensors"
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes_of_params(net, CROP))
    mean_image = colors.statistics.mean_image
    one_file.save(Trained(file, 0, config, "", colors.class_names, mean_image, net, params), file)
    wider = AlexNet(tuned(with_layers(layers, fc3={"features": 20})))
    found = find_origin(dataclasses.replace(config, init_from=str(file)), tmp_path, wider, colors)
    assert found.new == ["fc3/bias", "fc3/kernel", "fc4/bias", "fc4/kernel"]
    np.testing.assert_array_equal(found.values["conv2/kernel"], params["conv2"]["kernel"])


@pytest.mark.parametrize(
    ("layers", "changes", "message"),
    [
        (WIDER, {}, "none of its layers has the name and shapes of one here"),
        (TWO_CLASSES, {"init_from": "nowhere"}, "--init_from=nowhere: nowhere: there is no run"),
        (TWO_CLASSES, {"frozen_layers": ("fc4",)}, "--frozen_layers=fc4: is not taken over from"),
        (TWO_CLASSES, {"frozen_layers": ("conv1",), "init_from": ""}, "--frozen_layers=conv1: needs --init_from"),
    ],
)
def test_what_cannot_be_taken_over_is_refused(config, others, tmp_path, layers, changes, message):
    with pytest.raises(InputError, match=message):
        train(layers, others, dataclasses.replace(config, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # else the right flags would be refused there
