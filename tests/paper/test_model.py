import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CROP, TINY

from alexnet_jax.config import Config
from alexnet_jax.paper import model
from alexnet_jax.paper.architectures import PAPER
from alexnet_jax.paper.layers import dropout, lrn, pool, relu, takes_key
from alexnet_jax.paper.table import Conv, Dense, Local, named, output_names

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def init(layers, size=CROP):
    net = model.AlexNet(layers)
    draw = jax.jit(lambda key: net.init(key, jnp.zeros((1, size, size, 3)), train=False))
    return net, draw(jax.random.key(0))


def compiled(net):
    """Its `apply`, in one program: one by one, the operations take seconds to compile."""
    return jax.jit(net.apply, static_argnames="train")


def test_parameters_have_the_fields_names_and_shapes():
    net = model.AlexNet()
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))["params"]
    assert {name: layer["kernel"].shape for name, layer in shapes.items()} == {
        "conv1": (11, 11, 3, 96),
        "conv2": (5, 5, 48, 256),
        "conv3": (3, 3, 256, 384),
        "conv4": (3, 3, 192, 384),
        "conv5": (3, 3, 192, 256),
        "fc6": (9216, 4096),
        "fc7": (4096, 4096),
        "fc8": (4096, 1000),
    }
    assert all(layer["bias"].shape == layer["kernel"].shape[-1:] for layer in shapes.values())


def test_initialisation_follows_the_table():
    _, variables = init((Conv(64, 11, std=0.03, bias=1.0), Dense(10)))
    kernel, bias = variables["params"]["conv1"]["kernel"], variables["params"]["conv1"]["bias"]
    assert np.std(kernel) == pytest.approx(0.03, rel=0.02)
    assert np.mean(kernel) == pytest.approx(0, abs=0.001)
    np.testing.assert_array_equal(bias, np.ones(64))
    assert np.std(variables["params"]["fc2"]["kernel"]) == pytest.approx(0.01, rel=0.02)


def test_the_network_is_its_table():
    """The same as the operations written out by hand."""
    net, variables = init(TINY)
    x = 50 * jax.random.normal(jax.random.key(1), (2, CROP, CROP, 3))
    conv = jax.lax.conv_general_dilated
    form = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    @jax.jit
    def by_hand(p, x):
        y = conv(x, p["conv1"]["kernel"], (2, 2), ((0, 1), (0, 1)), **form) + p["conv1"]["bias"][None, None, None]
        y = pool(lrn(jax.nn.relu(y)))
        y = conv(y, p["conv2"]["kernel"], (1, 1), "SAME", feature_group_count=2, **form)
        y = pool(jax.nn.relu(y + p["conv2"]["bias"][None, None, None])).reshape(2, -1)
        y = 0.5 * jax.nn.relu(y @ p["fc3"]["kernel"] + p["fc3"]["bias"][None])
        return y @ p["fc4"]["kernel"] + p["fc4"]["bias"][None]

    found = compiled(net)(variables, x, train=False)
    np.testing.assert_allclose(found, by_hand(variables["params"], x), rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only_and_follows_the_key():
    net, variables = init(TINY)
    x = 50 * jax.random.normal(jax.random.key(1), (4, CROP, CROP, 3))
    apply = compiled(net)
    first, again, other = (apply(variables, x, train=True, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    test = apply(variables, x, train=False)
    np.testing.assert_array_equal(test, apply(variables, x, train=False, key=jax.random.key(5)))
    with pytest.raises(ValueError, match="key="):
        net.apply(variables, x, train=True)


def test_each_layer_drops_others():
    """Two layers that pass on all but what dropout takes: a quarter is left; one mask for both would leave a half."""
    net = model.AlexNet((Dense(300, then=(dropout,)), Dense(300, then=(dropout,))))
    layer = {"kernel": jnp.eye(300), "bias": jnp.zeros(300)}
    out = compiled(net)(
        {"params": {"fc1": layer, "fc2": layer}}, jnp.ones((40, 10, 10, 3)), train=True, key=jax.random.key(0)
    )
    assert np.mean(out) == pytest.approx(0.25, abs=0.02)


def test_computes_in_bfloat16_with_float32_parameters_and_logits():
    net, variables = init(TINY)
    low = model.AlexNet(TINY, dtype=jnp.bfloat16)
    x = 50 * jax.random.normal(jax.random.key(1), (4, CROP, CROP, 3))
    logits = compiled(low)(variables, x, train=False)
    assert logits.dtype == jnp.float32
    reference = compiled(net)(variables, x, train=False)
    assert 0 < np.abs(logits - reference).max() < 0.05 * np.abs(reference).max()


@pytest.mark.parametrize(
    ("asked", "meant"), [("default", "DEFAULT"), ("high", "HIGH"), ("highest", "HIGHEST"), ("highest", "bfloat16")]
)
def test_float32_is_multiplied_as_asked_forwards_and_backwards(asked, meant):
    precision = "bfloat16" if meant == "bfloat16" else "float32"
    net = model.configured_network(TINY, Config(precision=precision, matmul_precision=asked))
    (_, params), images = init(TINY), jnp.ones((2, CROP, CROP, 3))

    def loss(params):
        return net.apply(params, images, train=False).sum()

    products = re.findall(r"stablehlo.(?:convolution|dot_general).*", jax.jit(jax.grad(loss)).lower(params).as_text())
    assert len(products) >= 2 * len(TINY)  # of each layer, and of its gradients
    if precision == "bfloat16":
        assert all("xbf16>" in product for product in products)
    else:
        assert all(re.search(rf"precision\S* = \[(#stablehlo<precision )?{meant}>?, ", of) for of in products), products


def test_outputs_are_those_of_each_layer_and_of_each_of_its_steps_by_name():
    net, variables = init(TINY)
    x = 50 * jax.random.normal(jax.random.key(1), (4, CROP, CROP, 3))
    names = ["conv1", "conv1:relu", "conv1:lrn", "conv1:pool", "conv2", "conv2:relu", "conv2:pool",
             "fc3", "fc3:relu", "fc3:dropout", "fc4"]  # fmt: skip
    assert output_names(TINY) == names
    outputs = model.outputs(net, variables, x, names)
    assert list(outputs) == names
    shapes = {row.name: row.output_shape for row in model.summary(TINY, CROP)}
    before = x
    for name, layer in named(TINY).items():
        p = variables["params"][name]
        out = layer(before, p["kernel"]) + p["bias"].reshape((1,) * (3 if "conv" in name else 1) + (-1,))
        np.testing.assert_allclose(outputs[name], out, rtol=1e-5, atol=1e-5)
        before = outputs[name]
        for step in layer.then:
            np.testing.assert_allclose(outputs[f"{name}:{step.short_name}"], step(before), rtol=1e-5, atol=1e-6)
            before = outputs[f"{name}:{step.short_name}"]
        assert before.shape[1:] == shapes[name]
    np.testing.assert_array_equal(outputs["fc4"], net.apply(variables, x, train=False))


def test_only_the_outputs_that_are_asked_for_come_and_others_are_refused():
    net, variables = init(TINY)
    x = 50 * jax.random.normal(jax.random.key(1), (4, CROP, CROP, 3))
    assert list(model.outputs(net, variables, x, ["fc3:relu", "conv1"])) == ["fc3:relu", "conv1"]
    with pytest.raises(ValueError, match=r"there is no output conv1:tanh; there are conv1, conv1:relu, .*, fc4"):
        model.outputs(net, variables, x, ["conv1:tanh"])


def test_a_step_that_comes_twice_has_two_names():
    table = (Conv(4, 3, std=0.1, then=(relu, pool, relu, jnp.tanh, relu)), Dense(2))
    names = ["conv1", "conv1:relu", "conv1:pool", "conv1:relu2", "conv1:tanh", "conv1:relu3", "fc2"]
    assert output_names(table) == names
    net, variables = init(table, 8)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    outputs = jax.jit(lambda variables, x: model.outputs(net, variables, x, names))(variables, x)
    np.testing.assert_array_equal(outputs["conv1:relu2"], outputs["conv1:pool"])
    np.testing.assert_allclose(outputs["conv1:relu3"], np.tanh(outputs["conv1:pool"]), rtol=1e-5)


@takes_key
def noise(x, key, *, scale=1.0):
    """A random step of one's own."""
    if key is None:
        return x
    return x + scale * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(key)


def test_a_random_step_of_ones_own_gets_one_key_an_image_and_at_test_none():
    net = model.AlexNet((Dense(4, then=(noise, noise)), Dense(4, then=(noise,))))
    of_zeros = {"kernel": jnp.zeros((12, 4)), "bias": jnp.zeros(4)}
    variables = {"params": {"fc1": of_zeros, "fc2": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}}
    x, apply = jnp.zeros((500, 2, 2, 3)), compiled(net)
    np.testing.assert_array_equal(apply(variables, x, train=False), np.zeros((500, 4)))
    drawn = apply(variables, x, train=True, key=jax.random.key(0))
    assert np.std(drawn) == pytest.approx(3**0.5, rel=0.1)  # of three that are independent of each other
    keys = jax.random.split(jax.random.key(1), 500)
    whole = apply(variables, x, train=True, key=keys)
    part = apply(variables, x[:100], train=True, key=keys[200:300])
    np.testing.assert_allclose(part, whole[200:300], atol=1e-6)  # a product of fewer rows may round otherwise


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (30, "conv2: 2×2 is smaller than a pooling window of 3, where an image has 30×30"),
        (6, "conv1: 9×9, padded, is smaller than a window of 11, where an image has 6×6"),
    ],
)
def test_an_image_too_small_for_the_table_names_the_layer(size, message):
    with pytest.raises(ValueError, match=message):
        model.summary(PAPER, size)
    with pytest.raises(ValueError, match=message):
        init(PAPER, size)


def test_a_locally_connected_layer_has_weights_and_biases_of_each_place():
    table = (Conv(4, 3, padding=1, std=0.1), Local(6, 3, std=0.1, bias=0.5, then=(pool,)), Dense(2, std=0.1))
    local = model.summary(table, 11)[1]
    assert (local.name, local.output_shape) == ("local2", (4, 4, 6))
    assert local.parameters == 9 * 9 * (3 * 3 * 4 * 6 + 6)
    assert local.multiply_adds == 9 * 9 * 3 * 3 * 4 * 6
    net, variables = init(table, 11)
    params = variables["params"]["local2"]
    assert (params["kernel"].shape, params["bias"].shape) == ((9, 9, 3, 3, 4, 6), (9, 9, 6))
    np.testing.assert_array_equal(params["bias"], np.full((9, 9, 6), 0.5))
    x = jax.random.normal(jax.random.key(1), (2, 11, 11, 3))
    gradient = jax.jit(jax.grad(lambda variables: net.apply(variables, x, train=False).sum()))(variables)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match="local2: its window of 3 does not fit, where an image has 2×2"):
        model.summary(table, 2)


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [("THREE_CONV", 32, 89_578), ("THREE_CONV_TWO_DENSE", 32, 145_578), ("CONV_LOCAL", 24, 1_116_490)],
)
def test_the_networks_of_2012_for_cifar10_have_their_recorded_numbers_of_parameters(
    monkeypatch, name, size, parameters
):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "experiments")
    import cifar

    assert sum(row.parameters for row in model.summary(getattr(cifar, name), size)) == parameters
