"""The numbers that the paper states, or that follow from it (each with its section). No ImageNet is needed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.config import PRESETS
from alexnet_jax.paper import augment, layers, model
from alexnet_jax.paper.architectures import PAPER

ROWS = {row.name: row for row in model.summary(PAPER)}
CONVOLUTIONS, DENSE = ("conv1", "conv2", "conv3", "conv4", "conv5"), ("fc6", "fc7", "fc8")


def total(field, names=tuple(ROWS)):
    return sum(getattr(ROWS[name], field) for name in names)


def test_eight_layers_five_convolutional_and_three_dense():  # §3.5
    assert tuple(ROWS) == CONVOLUTIONS + DENSE


def test_kernels():  # §3.5: "96 kernels of size 11×11×3", "256 kernels of size 5×5×48", …
    shapes, channels = [], 3
    for layer in PAPER[:5]:
        shapes.append((layer.features, *layer.kernel_shape((1, 1, 1, channels))[:3]))
        channels = layer.features
    assert shapes == [(96, 11, 11, 3), (256, 5, 5, 48), (384, 3, 3, 256), (384, 3, 3, 192), (256, 3, 3, 192)]
    assert PAPER[0].stride == 4
    assert [layer.features for layer in PAPER[5:]] == [4096, 4096, 1000]


def test_which_layers_see_only_their_own_gpu():  # §3.5: "the second, fourth and fifth"
    assert [layer.groups for layer in PAPER[:5]] == [1, 2, 1, 2, 2]


def test_parameters():  # §1, §3.5: "60 million"; §1: each convolution has few of them
    assert {name: row.parameters for name, row in ROWS.items()} == {
        "conv1": 34_944,
        "conv2": 307_456,
        "conv3": 885_120,
        "conv4": 663_936,
        "conv5": 442_624,
        "fc6": 37_752_832,
        "fc7": 16_781_312,
        "fc8": 4_097_000,
    }
    assert total("parameters") == 60_965_224


def test_most_parameters_are_in_the_dense_layers_and_most_arithmetic_is_in_the_convolutions():
    assert total("parameters", DENSE) == 58_631_144
    assert total("parameters", DENSE) / total("parameters") == pytest.approx(0.962, abs=5e-4)
    assert total("multiply_adds", CONVOLUTIONS) / total("multiply_adds") == pytest.approx(0.919, abs=5e-4)


def test_the_first_layer_is_padded_at_the_bottom_and_right():  # 55 × 55 out of 224, as in 2012
    assert PAPER[0].padding == (0, 3)


def test_neurons():  # §3.5, Figure 2: "650,000"; the figure's 253,440 for conv1 should be 55·55·96
    assert [row.neurons for row in ROWS.values()] == [55 * 55 * 96, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert total("neurons") == 659_272


def test_multiply_adds():
    assert round(total("multiply_adds") / 1e5) == 7244  # 724.4 M


def test_output_shapes():  # §3.5
    assert [row.output_shape for row in ROWS.values()] == [
        (27, 27, 96),
        (13, 13, 256),
        (13, 13, 384),
        (13, 13, 384),
        (6, 6, 256),
        (4096,),
        (4096,),
        (1000,),
    ]


def steps(layer):
    return [step.function for step in layer.then]


def test_what_follows_each_layer():  # §3.5: normalisation after 1 and 2, pooling after both and 5; §4.2: dropout
    relu, norm, pool, dropout = layers.relu, layers.local_response_norm, layers.max_pool, layers.dropout
    expected = [[relu, norm, pool]] * 2 + [[relu]] * 2 + [[relu, pool]] + [[relu, dropout]] * 2 + [[]]
    assert [steps(layer) for layer in PAPER] == expected


def test_constants_of_normalization_and_pooling():  # §3.3: k = 2, n = 5, α = 10⁻⁴, β = 0.75; §3.4: z = 3, s = 2
    _, lrn, pool = PAPER[0].then
    assert dict(lrn.keywords) == {"size": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75, "groups": 2}
    assert dict(pool.keywords) == {"window": 3, "stride": 2, "ceil_mode": False}
    # One activity of 100 beside zeros, in the middle of a GPU's maps: 100 / (2 + 10⁻⁴ · 100²)^0.75.
    x = np.zeros((1, 96), np.float32)
    x[0, 20] = 100
    assert lrn(jnp.array(x))[0, 20] == pytest.approx(100 / 3**0.75, rel=1e-5)


def test_dropout_is_one_half_and_halves_the_outputs_at_test():  # §4.2
    x = jnp.ones((100, 100))
    assert np.mean(layers.dropout(x, jax.random.key(0))) == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(layers.dropout(x, None), x / 2)


def test_initial_values():  # §5: N(0, 0.01²); ones in layers 2, 4, 5 and the dense hidden ones
    net = model.AlexNet()
    small = jnp.zeros((1, 67, 67, 3))  # of which layer 6 has 256 inputs, not 9,216: fewer to draw
    init = jax.jit(lambda key: net.init(key, small, train=False))
    params = init(jax.random.key(0))["params"]
    for name, ones in zip(ROWS, [0, 1, 0, 1, 1, 1, 1, 0], strict=True):
        kernel = np.asarray(params[name]["kernel"])
        error = 4 / np.sqrt(2 * kernel.size)  # four standard errors of a standard deviation
        assert np.std(kernel) == pytest.approx(0.01, rel=error), name
        assert abs(np.mean(kernel)) < 4 * 0.01 / np.sqrt(kernel.size), name
        assert np.mean(np.abs(kernel) < 0.01) == pytest.approx(0.6827, abs=2 / np.sqrt(kernel.size)), name  # normal
        np.testing.assert_array_equal(params[name]["bias"], np.full(kernel.shape[-1], ones))


def test_examples_out_of_one():  # §4.1: "a factor of 2048"; ten patches at test
    rows, columns = np.mgrid[0:256, 0:256]
    image = jnp.array(np.stack([rows, columns, 0 * rows], -1), jnp.uint8)[None]  # pixels that say where they are

    @jax.jit
    def corner(key):
        return augment.random_crop(key, image, 224)[0, 0, 0, :2]

    corners = jax.lax.map(corner, jax.random.split(jax.random.key(0), 20_000))
    assert len({tuple(corner) for corner in np.asarray(corners).tolist()}) * 2 == 2048
    views = np.asarray(augment.ten_views(image, 224))[:, 0]
    assert sorted(views[:5, 0, 0, :2].tolist()) == [[0, 0], [0, 32], [16, 16], [32, 0], [32, 32]]
    assert len(views) == 10


def test_training_settings():  # §4.1, §5
    paper = PRESETS["paper"]
    assert (paper.batch_size, paper.learning_rate, paper.momentum, paper.weight_decay) == (128, 0.01, 0.9, 0.0005)
    assert (paper.epochs, paper.color_scale) == (90, 0.1)  # "roughly 90 cycles"
    # "one learning rate for all layers", divided by 10 on a plateau
    assert (paper.plateau_patience, paper.learning_rate_drops) == (5, ())
    assert (paper.bias_learning_rate, paper.conv1_frozen_from, paper.decay_biases) == (0, 0, True)
    assert (paper.crop_to_edge, paper.center_mean, paper.color_rescale, paper.color_off_from) == (
        False,
        False,
        False,
        0,
    )
    assert paper.crop_chunk == 1


def test_original_differs_from_paper_in_all_that_the_code_of_2012_did_otherwise():
    paper, original = (dataclasses.asdict(PRESETS[name]) for name in ("paper", "original"))
    assert {name: value for name, value in original.items() if value != paper[name]} == {
        "crop_to_edge": True,  # offsets 0 … 32
        "crop_chunk": 32,
        "center_mean": True,
        "color_rescale": True,  # ÷ 1.1
        "color_off_from": 67,
        "epochs": 91,
        "learning_rate_drops": (25, 51, 79),
        "plateau_patience": 0,
        "conv1_learning_rate_drops": (25, 51, 67),
        "conv1_frozen_from": 72,
        "bias_learning_rate": 0.02,
        "decay_biases": False,
    }
