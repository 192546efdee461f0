"""experiments/two_gpus.py and exchange.py, on a small table of the same kind."""

import sys
from pathlib import Path

import jax
import pytest
from conftest import CROP, TINY, small_config

from alexnet_jax import Conv, relu, summary, with_classes

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import exchange
import program_text
import two_gpus

pytestmark = pytest.mark.usefixtures("quickly_compiled")
# Layer 2 reads its own GPU's maps, layer 3 those of both, as conv2 and conv3 of the paper.
LAYERS = (
    *TINY[:2],
    Conv(8, 3, padding=1, std=0.1, then=(relu,)),
    TINY[2],
    with_classes(TINY, 4)[-1],
)
ROWS = {row.name: row for row in summary(LAYERS, CROP)}
TWO, FOUR, IMAGES = jax.devices()[:2], jax.devices()[:4], 8


@pytest.mark.slow
def test_two_devices_compute_what_one_does():
    errors = two_gpus.differences(LAYERS, CROP, 4, TWO)
    assert set(errors) == {"loss", "gradients", "updates"}
    assert max(errors.values()) < 1e-5


def sent(devices, **flags):
    return exchange.exchanged(LAYERS, devices, IMAGES, small_config(**flags))


@pytest.mark.slow
def test_in_two_columns_the_bytes_are_those_of_the_maps():
    maps = sum(ROWS[name].output_shape[-1] for name in ("fc4", "fc5"))
    for name in ("conv2", "conv3"):
        height, width, channels = ROWS[name].output_shape
        maps += height * width * channels
    half_of_the_batch = 4 * maps * IMAGES // 2
    found = sent(TWO, columns_parallel=True)
    logits = 4 * ROWS["fc5"].output_shape[-1] * IMAGES // 2  # whose gradient both have
    assert found == {"all-gather": half_of_the_batch, "reduce-scatter": half_of_the_batch - logits}


@pytest.mark.parametrize("devices", [pytest.param(TWO, marks=pytest.mark.slow), FOUR], ids=len)
def test_with_the_dense_layers_in_columns_no_gradient_of_theirs_is_sent(devices):
    n = len(devices)
    height, width, channels = ROWS["conv3"].output_shape
    others = 4 * IMAGES * (height * width * channels + ROWS["fc4"].output_shape[-1]) * (n - 1) // n
    logits = 4 * IMAGES * 4 // n * (n - 1) // n
    convolutions = 4 * sum(row.parameters for name, row in ROWS.items() if "conv" in name)
    found = sent(devices, dense_parallel=True)
    assert found["reduce-scatter"] == others
    assert found["all-to-all"] == 2 * logits
    assert 0 <= found["all-gather"] - others <= 100 * IMAGES  # keys of dropout, and nothing else
    assert 0 <= found["all-reduce"] - 2 * (n - 1) / n * convolutions < 100  # and loss and error


@pytest.mark.slow
def test_gradients_in_bfloat16_are_half_of_those_in_float32():
    parameters = sum(row.parameters for row in ROWS.values())
    assert sent(TWO) == {"all-reduce": 4 * (parameters + 2)}  # and loss and error
    found = sent(TWO, exchange_precision="bfloat16")
    half = sum(found.values()) - found["all-reduce"]
    assert found["all-reduce"] == 4 * 2
    assert 0 <= half - 2 * parameters < 100  # and what makes their number even


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%a = f32[2,8]{1,0} all-gather(%b), channel_id=1", {"all-gather": 32}),
        ("%a = (f32[10]{0}, f32[]) all-reduce(%b, %c)", {"all-reduce": 44}),
        ("ROOT %a = f32[3]{0} reduce-scatter(%b)", {"reduce-scatter": 12}),
        ("%a = u16[4]{0} all-to-all(%b)", {"all-to-all": 4}),
        ("%a = f32[3]{0} add(%all-gather.1, %b)", {}),
    ],
)
def test_bytes_of_one_exchange(line, expected):
    assert program_text.bytes_sent(line, 2) == expected


def test_what_is_computed_beside_an_exchange():
    text = """
ENTRY %main {
  %a.1 = (f32[8], f32[8]) all-reduce-start(%x)
  %f.1 = f32[8] fusion(%y), kind=kLoop
  %a.2 = f32[8] all-reduce-done(%a.1)
  %g.1 = f32[16] all-gather(%a.2)
}
"""
    assert exchange.overlap(text) == {
        "beside kernels": [{"exchange": "all-reduce", "result": "f32[8]", "kernels": 1}],
        "at once": [{"exchange": "all-gather", "result": "f32[16]"}],
    }
