"""What a network looks at: against finite differences, and networks built by hand, whose answer is known."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from alexnet_jax import figures
from alexnet_jax.config import Config
from alexnet_jax.networks import explain
from alexnet_jax.networks.network import Trained
from alexnet_jax.options import InputError
from alexnet_jax.paper.architectures import ORIGINAL, PAPER, TORCHVISION
from alexnet_jax.paper.layers import pool, relu
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.table import Conv, Dense
from alexnet_jax.paper.train_state import shapes_of_params

pytestmark = pytest.mark.usefixtures("quickly_compiled")
SIZE, CROP = 18, 12
FIRST = (SIZE - CROP) // 2
MEAN = np.random.default_rng(3).uniform(110, 140, (SIZE, SIZE, 3)).astype(np.float32)
IMAGES = np.random.default_rng(4).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
VIEWS = (IMAGES.astype(np.float64) - MEAN)[:, FIRST : FIRST + CROP, FIRST : FIRST + CROP]


def trained(layers, params, *, mean_image=MEAN, crop=CROP, dtype=jnp.float32):
    names = tuple(f"class {number}" for number in range(layers[-1].features))
    return Trained(Path("run"), 0, Config(crop_size=crop), "", names, mean_image, AlexNet(layers, dtype), params)


def drawn(layers, crop=CROP, scale=1.0):
    rng = np.random.default_rng(0)
    like = shapes_of_params(AlexNet(layers), crop)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), like)


def dense(kernel):
    """The parameters of a dense layer alone."""
    kernel = np.asarray(kernel, np.float32).reshape(-1, kernel.shape[-1])
    return {"fc1": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(kernel.shape[-1], jnp.float32)}}


def test_saliency_is_the_finite_difference_of_the_logit():
    mean_image = np.full((40, 40, 3), 128, np.float32)
    images = np.random.default_rng(5).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    views = (images.astype(np.float64) - 128)[:, 4:36, 4:36]
    with jax.enable_x64(True):
        network = trained(TINY, drawn(TINY, 32, 0.1), mean_image=mean_image, crop=32, dtype=jnp.float64)
        found = explain.saliency(network, images, [2, 0])
        assert found.shape == (2, 32, 32)
        places = [(image, row, column) for image in (0, 1) for row, column in ((0, 0), (15, 16), (31, 7))]
        moved = np.stack([views[image] for image, _, _ in places for _ in range(6)]).reshape(6, 3, 2, 32, 32, 3)
        for number, (_, row, column) in enumerate(places):
            for color in range(3):
                moved[number, color, :, row, column, color] += (1e-4, -1e-4)
        moved = jnp.asarray(moved.reshape(36, 32, 32, 3))
        logits = np.asarray(network.net.apply({"params": network.params}, moved, train=False)).reshape(6, 3, 2, 3)
    for (image, row, column), of_place in zip(places, logits, strict=True):
        expected = np.abs(of_place[:, 0] - of_place[:, 1])[:, [2, 0][image]].max() / 2e-4
        assert found[image, row, column] == pytest.approx(expected, rel=1e-5)
        assert expected > 1e-6


def test_the_likeliest_class_is_meant_where_none_is_given():
    network = trained((Dense(3),), dense(np.random.default_rng(0).normal(size=(CROP, CROP, 3, 3)) / 100))
    likeliest = np.asarray(network.probabilities(IMAGES)).argmax(1)
    np.testing.assert_array_equal(explain.saliency(network, IMAGES), explain.saliency(network, IMAGES, likeliest))
    others = (likeliest + 1) % 3
    assert not np.allclose(explain.saliency(network, IMAGES), explain.saliency(network, IMAGES, others))
    np.testing.assert_array_equal(explain.seen(network, IMAGES), IMAGES[:, 3:15, 3:15])


def test_occlusion_finds_the_square_that_alone_speaks_for_the_class():
    kernel = np.zeros((CROP, CROP, 3, 2))
    kernel[4:8, 8:12, :, 1] = 1e-3
    network = trained((Dense(2),), dense(kernel))
    images = np.full((2, SIZE, SIZE, 3), 250, np.uint8)
    images[1] = 200
    score = ((images - MEAN.astype(np.float64))[:, FIRST + 4 : FIRST + 8, FIRST + 8 : FIRST + 12] * 1e-3).sum((1, 2, 3))
    expected = np.zeros((2, 3, 3))
    expected[:, 1, 2] = 1 / (1 + np.exp(-score)) - 0.5  # without it, both classes are as likely
    found = explain.occlusion(network, images, [1, 0], window=4, stride=4)
    np.testing.assert_allclose(found, [expected[0], -expected[1]], atol=1e-6)
    with pytest.raises(InputError, match="a square of 13 pixels is larger than the view of 12"):
        explain.occlusion(network, images, window=13)


def test_occlusion_by_any_square_is_that_of_numpy():
    kernel = np.random.default_rng(1).normal(size=(CROP, CROP, 3, 3)) / 500
    network = trained((Dense(3),), dense(kernel))

    def probabilities(views):
        powers = np.exp(np.einsum("nhwc,hwck->nk", views, kernel))
        return powers / powers.sum(1, keepdims=True)

    for window, stride in ((5, 3), (1, 1), (0, 0)):
        found = explain.occlusion(network, IMAGES, [2, 1], window=window, stride=stride)
        side, step = window or CROP // 7, stride or 1
        firsts = range(0, CROP - side + 1, step)
        assert found.shape == (2, len(firsts), len(firsts))
        for row, top in enumerate(firsts):
            for column, left in enumerate(firsts):
                covered = VIEWS.copy()
                covered[:, top : top + side, left : left + side] = 0
                lost = (probabilities(VIEWS) - probabilities(covered))[[0, 1], [2, 1]]
                np.testing.assert_allclose(found[:, row, column], lost, atol=2e-6)


def test_gradcam_weighs_maps_by_the_means_of_their_gradients():
    """Of maps that a dense layer reads, the gradients are its weights; pooling hands them on to the largest."""
    layers = (Conv(4, 1, then=(relu,)), Dense(3))
    params = drawn(layers)
    kernel, bias = (np.asarray(params["conv1"][part], np.float64) for part in ("kernel", "bias"))
    maps = np.maximum(VIEWS @ kernel[0, 0] + bias, 0)
    weights = np.asarray(params["fc2"]["kernel"], np.float64).reshape(CROP, CROP, 4, 3)
    classes = [1, 2]
    alphas = weights.mean((0, 1))[:, classes].T
    expected = np.maximum((alphas[:, None, None] * maps).sum(-1), 0)
    network = trained(layers, params)
    tolerance = 1e-5 * expected.max()
    np.testing.assert_allclose(explain.gradcam(network, IMAGES, classes), expected, atol=tolerance)
    assert np.any(expected == 0)
    assert np.any(expected > 1)

    # Before the ReLU, where it is zero nothing speaks for anything: the output's own maps, and their own gradients.
    before = VIEWS @ kernel[0, 0] + bias
    alphas = np.stack([(weights[..., of] * (maps[n] > 0)).mean((0, 1)) for n, of in enumerate(classes)])
    expected = np.maximum((alphas[:, None, None] * before).sum(-1), 0)
    np.testing.assert_allclose(
        explain.gradcam(network, IMAGES, classes, output="conv1"), expected, atol=1e-5 * expected.max()
    )

    pooled = (Conv(4, 1, then=(relu, pool)), Dense(3))
    params = drawn(pooled)
    found = explain.gradcam(trained(pooled, params), IMAGES, classes)
    assert found.shape == (2, CROP, CROP)  # not pooled
    with pytest.raises(InputError, match="fc2: is of a dense layer, which has no maps"):
        explain.gradcam(network, IMAGES, output="fc2")
    with pytest.raises(InputError, match="its network has no output conv3; there are conv1, conv1:relu, fc2"):
        explain.gradcam(network, IMAGES, output="conv3")


def test_what_was_compiled_is_used_again():
    layers = (Conv(4, 1, then=(relu,)), Dense(3))
    network, compiled = trained(layers, drawn(layers)), []
    for method in explain.METHODS.values():
        method(network, IMAGES, [0, 1])
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    again = [method(network, IMAGES[::-1], [0, 1]) for method in explain.METHODS.values()]
    count = len(compiled)
    other = explain.saliency(network, IMAGES[:1], [0])  # of another shape: counted
    jax.monitoring.clear_event_listeners()
    assert (len(again), count) == (3, 0)
    assert len(compiled) > 0
    assert len(other) == 1


def test_gradcam_takes_the_last_maps_that_are_not_pooled():
    for layers, name in ((PAPER, "conv5:relu"), (TORCHVISION, "conv5:relu"), (ORIGINAL, "conv5")):
        params = shapes_of_params(AlexNet(layers), 224)
        assert explain._last_maps(trained(layers, params)) == name
    with pytest.raises(InputError, match="has no convolution"):
        explain.gradcam(trained((Dense(2),), dense(np.ones((CROP, CROP, 3, 2)))), IMAGES)


def test_a_linear_unit_likes_its_own_weights_best(tmp_path):
    kernel = np.random.default_rng(1).normal(size=(CROP, CROP, 3, 2))
    network = trained((Dense(2),), dense(kernel), mean_image=np.full((SIZE, SIZE, 3), 128, np.float32))
    found = explain.activation_maximization(network, "fc1", 1, contrast=20.0)
    expected = 128 + 20 * kernel[..., 1] / np.sqrt((kernel[..., 1] ** 2).mean())
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 0.6
    figures.save_images([found, found], ["one", "two"], tmp_path / "units.png")
    with Image.open(tmp_path / "units.png") as drawn:
        assert len(drawn.convert("RGB").getcolors(10**6)) > 100


def test_a_kernel_likes_itself_at_the_central_place_and_nothing_elsewhere():
    layers = (Conv(4, 3, stride=2, groups=1, then=(relu,)), Dense(3))
    params = drawn(layers)
    network = trained(layers, params, mean_image=np.full((SIZE, SIZE, 3), 100, np.float32))
    found = explain.activation_maximization(network, "conv1", 2, contrast=20.0).astype(np.float64) - 100
    kernel = np.asarray(params["conv1"]["kernel"])[..., 2]
    expected = np.zeros((CROP, CROP, 3))
    expected[4:7, 4:7] = 20 * kernel / np.sqrt((kernel**2).mean())  # of 5 × 5 places the third, at twice 2
    assert np.abs(found - expected).max() <= 0.6


def test_units_that_are_not_there_or_are_dead_are_named():
    layers = (Conv(2, 3, then=(relu,)), Dense(3))
    params = drawn(layers)
    params["conv1"]["bias"] = jnp.full(2, -1e6)
    network = trained(layers, params)
    for output, unit, message in (
        ("conv2", 0, "its network has no output conv2; there are conv1, conv1:relu, fc2"),
        ("fc2", 3, "fc2: has no unit 3; there are 3, from 0 on"),
        ("fc2", -1, "fc2: has no unit -1; there are 3, from 0 on"),
        ("conv1:relu", 0, "conv1:relu: noise does not reach its unit 0; take an output before a ReLU"),
    ):
        with pytest.raises(InputError, match=message):
            explain.activation_maximization(network, output, unit)
