"""Programs for accelerators that are not here: what is counted in them; and that they compile, where a plugin is."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
from compiled import least_bytes, wider_products
from program_text import bytes_of, traffic

TEXT = """\
HloModule jit_step

%fused (p: f32[4]) -> f32[4] {
  ROOT %inside = f32[4]{0} negate(%p)
}

ENTRY %main (x: f32[100,10], y: bf16[50]) -> f32[100,10] {
  %x = f32[100,10]{1,0} parameter(0)
  %y = bf16[50]{0} parameter(1)
  %small = f32[100,10]{1,0:T(8,128)S(1)} fusion(%x, %y), kind=kLoop, metadata={op_name="jit(step)/conv1/add"}
  %start = (bf16[50]{0:S(1)}, bf16[50]{0}, u32[]) copy-start(%y)
  %done = bf16[50]{0:S(1)} copy-done(%start)
  ROOT %out = (f32[100,10]{1,0}, pred[8]{0}) fusion(%small, %done), kind=kLoop, calls=%fused
}
"""


def test_what_each_kernel_moves_through_the_memory():
    assert bytes_of("(f32[100,10]{1,0}, pred[8]{0}, s32[])") == 4000 + 8 + 4
    assert bytes_of("f32[100,10]{1,0:T(8,128)S(1)}") == 0  # in the vector memory
    assert traffic(TEXT) == [
        (4000 + 100, "fusion small", "jit(step)/conv1/add"),  # what is made stays in the vector memory
        (100, "copy-done done", ""),
        (4000 + 8, "fusion out", ""),
    ]


def test_the_count_of_a_real_program():
    """On a CPU nothing is fused into a product."""
    compiled = jax.jit(lambda x, y: jnp.tanh(x) @ y).lower(jnp.ones((64, 32)), jnp.ones((32, 16))).compile()
    assert sum(moved for moved, *_ in traffic(compiled.as_text())) == 4 * (2 * 64 * 32 + 64 * 32 + 32 * 16 + 64 * 16)


def test_the_least_is_what_the_parameters_and_maps_take():
    parameters = 60_965_224  # the paper's 60 million
    one, two = least_bytes("train", "float32", 1), least_bytes("train", "float32", 2)
    assert 2 * one - two == 4 * 6 * parameters
    assert 2 * least_bytes("evaluate", "float32", 1) - least_bytes("evaluate", "float32", 2) == 4 * parameters
    of_image = two - one - 256 * 256 * 3
    places = 27 * 27 * 96 + 13 * 13 * 256 + 6 * 6 * 256  # of pooling: a byte each, in any precision
    half = least_bytes("train", "bfloat16", 2) - least_bytes("train", "bfloat16", 1) - 256 * 256 * 3
    assert 2 * (half - places) == of_image - places


def test_products_of_another_type_are_found():
    text = """\
  %a = f32[8,8]{1,0} parameter(0)
  %b = bf16[8,8]{1,0} parameter(1)
  %c = f32[8,8]{1,0} convolution(%b, %a), metadata={op_name="jit(step)/transpose(jvp(AlexNet))/conv1/conv_general_dilated"}
  %d = f32[8,8]{1,0} dot(%b, %b), metadata={op_name="jit(step)/jvp(AlexNet)/fc6/dot_general"}
  %sums = f32[8,8]{1,0} dot(%a, %a), metadata={op_name="jit(step)/jvp(AlexNet)/conv1/dot_general"}
"""  # noqa: E501
    assert wider_products(text, "bfloat16") == {"f32": 1}  # what is read counts; and the sums are meant
    assert wider_products(text, "float32") == {}
    assert wider_products(text.replace("dot(%b, %b)", "dot(%a, %b)"), "bfloat16") == {"f32": 2}
    assert wider_products(text, "highest") == {"default": 2}
    exact = text.replace("(%b, %a), ", "(%b, %a), operand_precision={highest,highest}, ")
    assert wider_products(exact, "highest") == {"default": 1}


@pytest.mark.slow
@pytest.mark.parametrize(("target", "plugin"), [("v5e", "libtpu"), ("h100", "jax_cuda12_plugin")])
@pytest.mark.parametrize(("task", "precision"), [("train", "bfloat16"), ("train", "highest"), ("evaluate", "float32")])
def test_it_compiles_for_accelerators(target, plugin, task, precision, tmp_path):
    if not importlib.util.find_spec(plugin):
        pytest.skip(f"{plugin} is not installed")
    command = [sys.executable, "experiments/compiled.py", f"--target={target}", "--task", task, "--batch=128",
               f"--precision={precision}", "--devices=1", "--text", str(tmp_path / "step.txt")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1].replace("'", '"').replace("None", "null"))
    assert row["task"] == task
    assert row["products_not_in_it"] == {}
    assert 0.95 < row["gigabytes"] / row["least_gigabytes"] < 1.6
