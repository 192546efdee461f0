"""§6's pre-training as in 2012: from five convolutions to six, and the rate of each parameter after that."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from alexnet_jax.config import Config
from alexnet_jax.data import datasets
from alexnet_jax.networks import one_file
from alexnet_jax.networks.network import Trained
from alexnet_jax.networks.transfer import find_origin
from alexnet_jax.paper.architectures import PAPER, six_conv
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.optim import configured_rule
from alexnet_jax.paper.table import with_column
from alexnet_jax.paper.train_state import shapes_of_params

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CROP, CLASSES = 67, tuple("abcdefghij")
# As many outputs as hidden units: fc8 of five convolutions has the shapes of the hidden fc8 of six.
FIVE = with_column(PAPER, features=(8, 8, 8, 8, 8, 10, 10, 10))
CONVOLUTIONS = {f"conv{number}/{kind}" for number in range(1, 6) for kind in ("kernel", "bias")}


@pytest.fixture(scope="module")
def dataset(prepared):
    return dataclasses.replace(datasets.open_dataset(str(prepared)), class_names=CLASSES)


def random_params(layers, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda of: rng.standard_normal(of.shape).astype(np.float32), names(layers))


def saved(layers, file):
    """A network of random parameters, as a file that a run can begin with."""
    net, params = AlexNet(layers), random_params(layers, seed=7)
    one_file.save(Trained(file, 0, Config(crop_size=CROP), "", CLASSES, np.zeros((70, 70, 3)), net, params), file)
    return params


@pytest.mark.parametrize(("before", "after"), [(FIVE, six_conv(FIVE)), (six_conv(FIVE), FIVE)])
def test_from_five_to_six_convolutions_and_back_conv1_to_conv5_are_taken_whole(tmp_path, dataset, before, after):
    params = flatten_dict(saved(before, tmp_path / "net.safetensors"), sep="/")
    config = Config(crop_size=CROP, init_from=str(tmp_path / "net.safetensors"))
    origin = find_origin(config, tmp_path / "run", AlexNet(after), dataset)
    assert set(origin.taken) == CONVOLUTIONS
    assert {name.partition("/")[0] for name in origin.new} == {layer for layer in names(after) if layer > "conv5"}
    for name in origin.taken:
        np.testing.assert_array_equal(origin.values[name], params[name])


def names(layers):
    return shapes_of_params(AlexNet(layers), CROP)


def test_a_layer_of_which_only_the_bias_fits_is_not_taken(tmp_path, dataset):
    saved(FIVE, tmp_path / "net.safetensors")
    wider = with_column(FIVE, features=(8, 8, 8, 8, 8, 12, 10, 10))  # fc7 has another kernel and the same bias
    config = Config(crop_size=CROP, init_from=str(tmp_path / "net.safetensors"))
    origin = find_origin(config, tmp_path / "run", AlexNet(wider), dataset)
    assert set(origin.taken) == CONVOLUTIONS | {"fc8/kernel", "fc8/bias"}


@pytest.mark.parametrize(("scale", "bias_scale"), [(0.1, 1.0), (0.0, 0.0)])
def test_each_parameter_moves_at_its_own_rate(tmp_path, dataset, scale, bias_scale):
    saved(FIVE, tmp_path / "net.safetensors")
    config = Config(
        crop_size=CROP, init_from=str(tmp_path / "net.safetensors"), frozen_layers=("conv2",), taken_rate_scale=scale,
        learning_rate=0.01, learning_rate_drops=(2.0,), bias_learning_rate=0.02, decay_biases=False,
    )  # fmt: skip
    net = AlexNet(six_conv(FIVE))
    origin = find_origin(config, tmp_path / "run", net, dataset)
    params = origin.into(random_params(six_conv(FIVE), seed=1))
    optimizer = configured_rule(config, steps_per_epoch=1, taken=origin.taken)
    expected = {name: np.float64(value) for name, value in flatten_dict(params, sep="/").items()}
    velocity = {name: np.zeros_like(value) for name, value in expected.items()}
    state, update, rng = optimizer.init(params), jax.jit(optimizer.update), np.random.default_rng(0)
    for drop in (1, 1, 0.1):
        gradients = jax.tree.map(lambda of: jnp.array(rng.standard_normal(of.shape), jnp.float32), params)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, gradient in flatten_dict(gradients, sep="/").items():
            layer, kind = name.split("/")
            taken = layer in ("conv1", "conv3", "conv4", "conv5")
            if kind == "kernel":
                rate, decay = 0.01 * drop * (scale if taken else 1), 0.0005
            else:
                rate, decay = 0.02 * (bias_scale if taken else 1), 0.0
            rate = 0.0 if layer == "conv2" else rate
            velocity[name] = 0.9 * velocity[name] - decay * rate * expected[name] - rate * np.float64(gradient)
            expected[name] = expected[name] + velocity[name]
    for name, value in flatten_dict(params, sep="/").items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
