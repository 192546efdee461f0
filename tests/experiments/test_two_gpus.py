"""experiments/two_gpus.py, on a small table of the same kind."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import CROP, TINY

from alexnet_jax import AlexNet, Conv, relu, summary, with_classes

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import two_gpus

pytestmark = pytest.mark.usefixtures("quickly_compiled")
# Layer 2 reads its own GPU's maps, layer 3 those of both, as conv2 and conv3 of the paper.
LAYERS = (
    *TINY[:2],
    Conv(8, 3, padding=1, std=0.1, then=(relu,)),
    TINY[2],
    with_classes(TINY, 4)[-1],
)
TWO = jax.devices()[:2]


@pytest.mark.slow
def test_two_devices_compute_what_one_does():
    errors = two_gpus.differences(LAYERS, CROP, 4, TWO)
    assert set(errors) == {"loss", "gradients", "updates"}
    assert max(errors.values()) < 1e-5


def test_each_device_holds_half_of_every_parameter():
    whole = sum(row.parameters for row in summary(LAYERS, CROP))
    net, images = AlexNet(LAYERS), jnp.zeros((1, CROP, CROP, 3))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))["params"]
    halves = jax.tree.leaves(jax.eval_shape(two_gpus.split, params))
    assert all(half.shape[0] == 2 for half in halves)
    assert sum(half.size for half in halves) == whole


def test_bytes_are_those_of_the_maps_exchanged_or_of_the_gradients():
    sent = two_gpus.exchanged(LAYERS, CROP, 4, TWO)
    rows = {row.name: row for row in summary(LAYERS, CROP)}
    maps = sum(rows[name].output_shape[-1] for name in ("fc4", "fc5"))
    for name in ("conv2", "conv3"):
        height, width, channels = rows[name].output_shape
        maps += height * width * channels
    half_of_the_batch = 4 * maps * 4 // 2  # 4 images, 4 bytes
    assert sent["model parallel"] == {"all-gather": half_of_the_batch, "reduce-scatter": half_of_the_batch}
    parameters = sum(row.parameters for row in rows.values())
    assert sent["data parallel"] == {"all-reduce": 4 * (parameters + 1)}  # and the loss


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%a = f32[2,8]{1,0} all-gather(%b), channel_id=1", {"all-gather": 32}),
        ("%a = (f32[10]{0}, f32[]) all-reduce(%b, %c)", {"all-reduce": 44}),
        ("ROOT %a = f32[3]{0} reduce-scatter(%b)", {"reduce-scatter": 12}),
        ("%a = f32[3]{0} add(%all-gather.1, %b)", {}),
    ],
)
def test_bytes_of_one_exchange(line, expected):
    assert two_gpus.bytes_sent(line) == expected
