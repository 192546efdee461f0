"""experiments/scaling.py and scaling_model.py: the exchanges of a program, run again alone, and counted on paper."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import program_text
import record
import scaling
import scaling_model

TEXT = """
  %all-reduce = (f32[10]{0}, f32[2,3]{1,0}) all-reduce(%a, %b), channel_id=1
  %g = u16[4,8]{1,0} all-gather(%c), channel_id=2
  ROOT %s = f32[3]{0} reduce-scatter(%d)
  %t = (f32[4]{0}, f32[4]{0}) all-to-all(%e, %f)
  %x = f32[3]{0} add(%all-gather.1, %all-reduce)
"""


def test_the_exchanges_of_a_program_in_their_order():
    found = scaling.exchanges(TEXT)
    assert found == [
        ("all-reduce", [("f32", 10), ("f32", 6)]),
        ("all-gather", [("u16", 32)]),
        ("reduce-scatter", [("f32", 3)]),
        ("all-to-all", [("f32", 4), ("f32", 4)]),
    ]
    sent = {"all-reduce": 64, "all-gather": 32, "reduce-scatter": 12, "all-to-all": 16}
    assert program_text.bytes_sent(TEXT, 2) == sent
    assert program_text.bytes_sent(TEXT, 4) == {
        "all-reduce": 96, "all-gather": 48, "reduce-scatter": 36, "all-to-all": 24,
    }  # fmt: skip


def test_they_are_done_again_by_a_program_of_nothing_else():
    found, devices = scaling.exchanges(TEXT), jax.devices()[:2]
    program, arrays = scaling.replay(found, devices)
    arrays = jax.tree.map(lambda of: np.repeat(of, 2, axis=0), arrays)  # here both devices are of one host
    compiled = program.lower(arrays).compile()
    assert program_text.bytes_sent(compiled.as_text(), 2) == program_text.bytes_sent(TEXT, 2)
    done = compiled(arrays)
    assert [[array.shape for array in of] for of in done] == [[(2, 10), (2, 6)], [(2, 32)], [(2, 3)], [(2, 8)]]
    assert [float(np.float32(of[0][0, 0])) for of in done] == [2, 1, 2, 1]


def test_bytes_on_paper_are_those_of_compiled_programs():
    sent = record.log("two_gpus_paper")["bytes_sent_per_device_and_step_at_batch_128"]
    of_data = sum(sent["data parallel"].values())
    of_gradients = of_data - 8  # the rest are the loss and the error
    assert scaling_model.bytes_sent("float32", 2, 128) == of_gradients
    assert scaling_model.bytes_sent("bfloat16", 2, 128) == of_gradients / 2
    of_columns = sum(sent["model parallel"].values())
    assert scaling_model.bytes_sent("columns", 2, 64) == pytest.approx(of_columns, rel=0.02)


def test_dividing_the_dense_layers_saves_up_to_a_number_of_images():
    images = scaling_model.images_where_even(8)
    assert scaling_model.bytes_sent("dense", 8, images) == pytest.approx(scaling_model.bytes_sent("float32", 8, images))
    # 58.6 million weights against 9,216 + 4,096 + 4,096 numbers an image, of all devices
    assert 8 * images == pytest.approx(58_631_144 / (9216 + 4096 + 4096), rel=0.02)


def test_what_exchange_leaves_of_the_speed_of_several_devices():
    machine = scaling_model.MACHINES[-1]
    computing = scaling_model.seconds_computing(machine, 128)
    exchange, times = scaling_model.speedup(machine, "float32", 128)
    # 2 · 7/8 · 244 MB at 1.25 GB/s
    assert exchange == pytest.approx(0.341, rel=0.01)
    assert times == pytest.approx(8 / (1 + exchange / computing))
