"""Which fast forms a table gets, and that it stays the same table. What they compute: tests/paper/test_layers.py,
test_onednn.py here, and tests/test_transformations.py.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CROP, TINY, without_compilation_cache

from alexnet_jax.device import accelerator_forms, forms, onednn, parallel, xla
from alexnet_jax.device.tuned import form_for, missing_forms, tuned
from alexnet_jax.paper import layers
from alexnet_jax.paper.architectures import ARCHITECTURES
from alexnet_jax.paper.augment import patches
from alexnet_jax.paper.layers import average_pool, relu
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.table import Dense, Local, output_names, with_layers
from alexnet_jax.paper.train_state import shapes_of_params
from alexnet_jax.paper.written import from_json, to_json

CPU = jax.devices()[:1]
GPU = [mock.Mock(spec=jax.Device, platform="gpu")]
TPU = [mock.Mock(spec=jax.Device, platform="tpu")]


def own_step(x, *, slope=0.1):
    return slope * x


def functions(table):
    """What computes it."""
    return {of for layer in table for of in (layer.operation, layer.add_bias, *(step.function for step in layer.then))}


@pytest.mark.parametrize("devices", [CPU, GPU, TPU], ids=["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tuned_table_is_the_same_network(name, devices):
    table = ARCHITECTURES[name]
    fast = tuned(table, devices)
    assert to_json(fast) == to_json(table)
    assert from_json(to_json(fast)) == table
    assert output_names(fast) == output_names(table)
    assert shapes_of_params(AlexNet(fast), 227) == shapes_of_params(AlexNet(table), 227)
    assert tuned(fast, devices) == fast


def test_on_a_cpu_all_that_has_a_fast_form_gets_it():
    assert functions(tuned(TINY, CPU)) == {
        forms.conv2d, forms.dense, forms.add_bias, forms.max_pool, forms.local_response_norm, relu, layers.dropout
    }  # fmt: skip
    assert functions(TINY) == {
        layers.conv2d, layers.dense, layers.add_bias, layers.max_pool, layers.local_response_norm, relu, layers.dropout
    }  # fmt: skip
    assert tuned(TINY) == tuned(TINY, jax.devices()) == tuned(TINY, CPU)
    with without_compilation_cache():
        if not onednn.missing():
            assert {layer.operation for layer in tuned(TINY, CPU)[:2]} == {forms.conv2d_of_onednn}


@pytest.mark.parametrize(
    ("devices", "faster"),
    [
        (GPU, {
            layers.add_bias: accelerator_forms.add_narrow_bias, relu: accelerator_forms.relu,
            layers.max_pool: accelerator_forms.max_pool_of_gpu,
            layers.local_response_norm: accelerator_forms.local_response_norm_of_gpu,
        }),
        (TPU, {
            layers.add_bias: accelerator_forms.add_narrow_bias, relu: accelerator_forms.relu,
            layers.local_response_norm: accelerator_forms.local_response_norm_of_tpu,
        }),
    ],
    ids=["gpu", "tpu"],
)  # fmt: skip
def test_what_has_a_fast_form_elsewhere(devices, faster):
    fast = tuned(TINY, devices)
    assert functions(fast) - functions(TINY) == {*faster.values()}
    assert functions(TINY) - functions(fast) == {*faster}
    assert form_for(patches, devices) is (accelerator_forms.patches_by_product if devices is TPU else patches)


def test_other_platforms_have_the_formulas():
    assert tuned(TINY, [mock.Mock(spec=jax.Device, platform="metal")]) == TINY


def test_what_has_no_fast_form_is_left_as_it_is():
    own = functools.partial(own_step, slope=0.5)
    table = (Local(4, 3, then=(own, functools.partial(average_pool, window=2, stride=2))), Dense(2))
    fast = tuned(table, CPU)
    assert fast[0].then == table[0].then
    assert fast[0].operation is layers.locally_connected
    assert fast[1].operation is forms.dense
    changed = with_layers(tuned(TINY, CPU), conv1={"stride": 1})  # a tuned table is changed as any other
    assert to_json(changed) == to_json(with_layers(TINY, conv1={"stride": 1}))


def test_steps_keep_their_keywords():
    lrn, fast = TINY[0].then[1], tuned(TINY, CPU)[0].then[1]
    assert (fast.keywords, fast.name, fast.short_name) == (lrn.keywords, "lrn", "lrn")
    assert fast.replaced(alpha=0.5).function is forms.local_response_norm


def test_a_line_says_what_is_left_out(monkeypatch):
    assert missing_forms(GPU) == missing_forms(TPU) == ""
    cache = "oneDNN's convolutions and products (a compilation cache cannot keep programs that call them)"
    assert missing_forms(CPU) == f"slower than it could be, without {cache}"
    with without_compilation_cache(), monkeypatch.context() as patch:
        patch.setattr(onednn, "_fault", lambda: "")
        assert missing_forms(CPU) == ""
        patch.setattr(onednn, "_fault", lambda: "jaxlib 0.1 was built without them")
        assert missing_forms(CPU).endswith(
            "without oneDNN's convolutions and products (jaxlib 0.1 was built without them)"
        )
        assert [layer.operation for layer in tuned(TINY, CPU)[:: len(TINY) - 1]] == [forms.conv2d, forms.dense]


def test_a_network_of_the_fast_forms_cannot_be_differentiated_forwards():
    """It says so, rather than to be wrong."""
    net = AlexNet(tuned(TINY, CPU))
    params = jax.tree.map(lambda of: jnp.zeros(of.shape, of.dtype), shapes_of_params(net, CROP))
    images = jnp.ones((1, CROP, CROP, 3))
    with pytest.raises(ValueError, match="conv1: can't apply forward-mode autodiff"):
        jax.jvp(lambda params: net.apply({"params": params}, images, train=False), (params,), (params,))


def test_an_augmentation_is_kept_on_cpus_and_left_alone_elsewhere():
    def augment(draws, images):
        return images.astype(jnp.float32) * 2 + draws

    assert xla.kept(augment, GPU) is augment
    kept = xla.kept(augment, CPU)
    images = jnp.arange(6, dtype=jnp.uint8)
    np.testing.assert_array_equal(jax.jit(kept)(jnp.float32(1), images), augment(jnp.float32(1), images))
    assert "conditional" in jax.jit(kept).lower(jnp.float32(1), images).compile().as_text()


def test_the_axis_is_that_of_several_devices():
    assert parallel.axis_of(CPU) is None
    assert parallel.axis_of(jax.devices()[:2]) == parallel.AXIS
