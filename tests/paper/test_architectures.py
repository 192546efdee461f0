"""The tables: what each must be, by its published totals and by the lines in which it differs from another."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from alexnet_jax.config import ARCHITECTURE_NAMES
from alexnet_jax.paper import architectures, model
from alexnet_jax.paper.architectures import ARCHITECTURES, CAFFE_IMAGE_SIZE, ORIGINAL, PAPER
from alexnet_jax.paper.table import Conv, Dense, Local, named, with_classes, with_layers, with_steps


def differences(layers, base):
    """{layer: {field: value}} of what is not as in `base`."""
    return {
        name: {
            field: value
            for field, value in vars(layer).items()
            if value != getattr(named(base)[name], field)
        }
        for name, layer in named(layers).items()
        if layer != named(base)[name]
    }  # fmt: skip


def step_names(layer):
    """What the steps after a layer compute, with all their keywords."""
    return [(step.function.__name__, dict(step.keywords)) for step in layer.then]


LRN_PAPER = {"size": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75, "groups": 2}  # §3.3
LRN_2012 = LRN_PAPER | {"alpha": 2e-5}
RELU, POOL = ("relu", {}), ("max_pool", {"window": 3, "stride": 2, "ceil_mode": False})
INVERTED_DROPOUT = ("dropout", {"rate": 0.5, "inverted": True})


def test_the_tables_are_those_of_the_help_text_and_nobody_changes_them():
    assert tuple(ARCHITECTURES) == ARCHITECTURE_NAMES
    with pytest.raises(TypeError):
        ARCHITECTURES["mine"] = PAPER
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER[0].std = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER[0].then[1].keywords = ()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("paper", 60_965_224),
        ("original", 60_965_224),
        ("caffe", 60_965_224),
        ("no_normalization", 60_965_224),
        ("non_overlapping_pooling", 60_965_224),
        ("one_gpu", 59_798_312),
        ("six_conv", 61_555_304),
        ("torchvision", 61_100_840),
        ("demo", 3_582_154),
    ],
)
def test_parameters(name, parameters):
    rows = model.summary(ARCHITECTURES[name], CAFFE_IMAGE_SIZE if name == "caffe" else 224)
    assert sum(row.parameters for row in rows) == parameters
    assert rows[4].output_shape[:2] == (6, 6)


def test_original_differs_from_paper_where_the_code_of_2012_differs_from_the_text():
    changed = differences(ORIGINAL, PAPER)
    assert {name: {field for field in fields} for name, fields in changed.items()} == {
        "conv1": {"then"}, "conv2": {"then"}, "conv3": {"std"}, "conv4": {"std"}, "conv5": {"std", "then"}
    }  # fmt: skip
    assert [ORIGINAL[i].std for i in (2, 3, 4)] == [0.03] * 3
    assert step_names(ORIGINAL[0]) == [("local_response_norm", LRN_2012), POOL, RELU]
    spatial = {"size": 5, "alpha": 4e-5, "beta": 0.75}
    assert step_names(ORIGINAL[1]) == [
        RELU,
        ("local_response_norm", LRN_2012),
        ("spatial_response_norm", spatial),
        POOL,
    ]
    assert step_names(ORIGINAL[4]) == [POOL, RELU]


def test_normalization_before_or_after_the_relu_is_not_the_same_in_layer_1():
    kernel = np.random.default_rng(0).normal(0, 0.05, (11, 11, 3, 96)).astype(np.float32)
    x = jnp.array(np.random.default_rng(1).normal(0, 60, (1, 63, 63, 3)), jnp.float32)
    linear = PAPER[0](x, jnp.array(kernel))

    def after(steps):
        out = linear
        for step in steps:
            out = step(out)
        return np.asarray(out)

    (relu, _, pool), (lrn, _, _) = PAPER[0].then, ORIGINAL[0].then
    assert np.abs(after((lrn, pool, relu)) - after((relu, lrn, pool))).max() > 0.1
    np.testing.assert_array_equal(after((pool, relu)), after((relu, pool)))  # as in conv5


def test_one_gpu_has_half_the_kernels_but_in_the_last_convolution_and_no_groups():
    one = ARCHITECTURES["one_gpu"]
    assert [layer.features for layer in one] == [48, 128, 192, 192, 256, 4096, 4096, 1000]
    assert [layer.groups for layer in one[:5]] == [1] * 5
    assert step_names(one[0])[1] == step_names(one[1])[1] == ("local_response_norm", LRN_PAPER | {"groups": 1})
    assert [layer.features for layer in architectures.one_gpu(ORIGINAL)[:2]] == [48, 128]


@pytest.mark.parametrize("base", [PAPER, ORIGINAL, ARCHITECTURES["one_gpu"], ARCHITECTURES["caffe"]])
def test_no_normalization_has_none_of_either_kind(base):
    table = architectures.no_normalization(base)
    assert {name for layer in table for name, _ in step_names(layer)} == {"relu", "max_pool", "dropout"}
    assert {name: set(fields) for name, fields in differences(table, base).items()} == {
        "conv1": {"then"}, "conv2": {"then"}
    }  # fmt: skip


def test_non_overlapping_pooling_keeps_what_the_other_layers_see():
    table = ARCHITECTURES["non_overlapping_pooling"]
    changed = differences(table, PAPER)
    assert {name: {f: v for f, v in fields.items() if f != "then"} for name, fields in changed.items()} == {
        "conv1": {}, "conv2": {"padding": 1}, "conv5": {"padding": 0}
    }  # fmt: skip
    shapes = [row.output_shape for row in model.summary(table)]
    assert shapes[0] == (28, 28, 96)  # 55 / 2, the last window clipped
    assert shapes[1:] == [row.output_shape for row in model.summary(PAPER)][1:]


def test_six_conv_has_a_sixth_convolution_over_the_last_pooling():
    for base, std in ((PAPER, 0.01), (ORIGINAL, 0.03)):
        table = architectures.six_conv(base)
        assert table[:5] + table[6:] == base
        assert (table[5].features, table[5].window, table[5].padding, table[5].groups) == (256, 3, 1, 1)
        assert (table[5].std, table[5].bias, step_names(table[5])) == (std, 1.0, [RELU])
    assert list(named(table)) == ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc7", "fc8", "fc9"]


def test_caffe_reads_227_and_normalizes_across_the_groups():
    caffe = ARCHITECTURES["caffe"]
    assert CAFFE_IMAGE_SIZE == 227
    assert (caffe[0].padding, [layer.groups for layer in caffe[:5]]) == (0, [1, 2, 1, 2, 2])
    assert step_names(caffe[0]) == [RELU, ("local_response_norm", LRN_2012 | {"k": 1.0, "groups": 1}), POOL]
    assert step_names(caffe[6]) == [RELU, INVERTED_DROPOUT]
    assert [layer.bias for layer in caffe] == [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]


def test_torchvision_drops_what_the_dense_layers_read():
    drops = [name for name, layer in named(ARCHITECTURES["torchvision"]).items() if "dropout" in str(step_names(layer))]
    assert drops == ["conv5", "fc6"]
    assert step_names(ARCHITECTURES["torchvision"][4]) == [RELU, POOL, INVERTED_DROPOUT]


def test_torchvisions_deviations_are_those_of_pytorchs_uniform_weights():
    for row, layer in zip(model.summary(ARCHITECTURES["torchvision"]), ARCHITECTURES["torchvision"], strict=True):
        inputs = (row.parameters - layer.features) / layer.features
        assert layer.std == pytest.approx((1 / inputs / 3) ** 0.5)  # of U(-1/√n, 1/√n)


def test_demo_is_the_paper_at_a_fraction_of_the_width():
    for name, fields in differences(ARCHITECTURES["demo"], PAPER).items():
        assert set(fields) <= {"features", "std", "bias"}
        assert fields["features"] < named(PAPER)[name].features


def test_another_activation_is_one_expression():
    tanh = with_steps(PAPER, {architectures.relu: jnp.tanh})
    assert {name for layer in tanh for name, _ in step_names(layer)} == {
        "tanh", "local_response_norm", "max_pool", "dropout"
    }  # fmt: skip
    assert all(set(fields) == {"then"} for fields in differences(tanh, PAPER).values())


def test_with_layers_changes_the_named_ones_only():
    table = with_layers(PAPER, conv3={"std": 0.5, "bias": 2.0}, fc8={"features": 7})
    assert differences(table, PAPER) == {"conv3": {"std": 0.5, "bias": 2.0}, "fc8": {"features": 7}}
    with pytest.raises(ValueError, match=r"no layer of this table is followed by .*tanh"):
        with_steps(PAPER, {jnp.tanh: None})
    with pytest.raises(ValueError, match=r"conv9: no layer of this table; there are conv1, conv2, .*fc8"):
        with_layers(PAPER, conv9={"std": 0.5})


def test_with_classes_changes_the_last_layer_only():
    layers = with_classes(PAPER, 7)
    assert layers[:-1] == PAPER[:-1]
    assert layers[-1] == dataclasses.replace(PAPER[-1], features=7)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((Conv(9, 3, groups=2), Dense(2)), "conv1: 2 groups do not divide its 3 input channels"),
        ((Conv(8, 3), Conv(9, 3, groups=2)), "conv2: 2 groups do not divide its 9 features"),
        ((*TINY[:1], Conv(9, 3, groups=3), *TINY[2:]), "conv2: 3 groups do not divide its 8 input channels"),
        ((Dense(8), Conv(9, 3)), "conv2: it cannot follow a dense layer"),
        ((Dense(8), Local(9, 3)), "local2: it cannot follow a dense layer"),
        ((Conv(8, 3, stride=0),), "conv1: stride is 0; it must be at least 1"),
        ((Conv(8, 3), Dense(0)), "fc2: features is 0; it must be at least 1"),
    ],
)
def test_an_impossible_table_fails_at_construction_and_names_the_layer(layers, message):
    with pytest.raises(ValueError, match=message):
        model.AlexNet(layers)
    with pytest.raises(ValueError, match=message):
        model.summary(layers, 64)
