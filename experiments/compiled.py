"""What a step costs on an H100 or a TPU, by the programs that are compiled for them; no such device is needed.

  python experiments/compiled.py --target=h100     two minutes; needs jax[cuda12] 0.12 on Python 3.12 or later
  python experiments/compiled.py --target=v5e      half an hour on two cores; needs jax[tpu]; also v4, v6e
  … --precision=bfloat16 --batch=1024 --devices=1 --task=train --text=step.txt     one program, its text, and no log

Expected: memory takes longer than computing does, everywhere. What is logged of each program:

- The bytes that it moves through the device's memory: what each kernel of the program reads and writes, as if nothing
  stayed in a cache. For TPUs XLA's own account as well, which counts what is copied ahead to the vector memory, and
  again where it is read there; of batch 128 on one chip also its account of the same step compiled without such copies.
  Beside them the least that has to be moved (`least_bytes`).
- The largest memory that it takes, the convolutions and products that are not in the asked type, and the CPU-seconds of
  its compilation.
- Time by roofline: the bytes over the memory's rate, and the network's multiply-adds over the rate of its matrix units.
"""

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# Autotuning needs the device.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"

import argparse
import collections
import dataclasses
import itertools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from program_text import BYTES, traffic
from record import save

from alexnet_jax import (
    PAPER,
    PRESETS,
    AlexNet,
    init_state,
    make_train_step,
    outputs,
    summary,
)
from alexnet_jax.data.images import Statistics
from alexnet_jax.data.input_pipeline import Batch
from alexnet_jax.device.tuned import tuned, tuned_augmentation
from alexnet_jax.paper.evaluate import make_evaluation_step, make_logits
from alexnet_jax.paper.model import configured_network
from alexnet_jax.paper.optim import configured_rule
from alexnet_jax.paper.table import named, output_names


@dataclasses.dataclass(frozen=True)
class Target:
    """memory: bytes a second. matrix: multiplications and additions a second, by precision. From the makers' sheets."""

    platform: str
    name: str
    topologies: dict[int, str]  # by the number of devices
    memory: float
    matrix: dict[str, float]


def rates(bfloat16: float, float32: float = 0.0, highest: float = 0.0) -> dict[str, float]:
    """float32 in TF32 on a GPU and in bfloat16 on a TPU, which is their default; exactly in six passes of bfloat16."""
    return {"bfloat16": bfloat16, "float32": float32 or bfloat16, "highest": highest or bfloat16 / 6}


CHIPS = {1: "1x1", 4: "2x2"}
TARGETS = {
    "h100": Target("cuda", "h100", {1: "1x1x1", 4: "1x4x1"}, 3.35e12, rates(989e12, float32=494e12, highest=67e12)),
    "v4": Target("tpu", "v4", {1: "1x1x1", 4: "2x2x1"}, 1.228e12, rates(275e12)),
    "v5e": Target("tpu", "v5e", CHIPS, 0.819e12, rates(197e12)),
    "v6e": Target("tpu", "v6e", CHIPS, 1.64e12, rates(918e12)),
}
TASKS = {"train": 1, "evaluate": 1, "ten views": 10}  # how many views of an image
PRECISIONS = {  # of Config
    "bfloat16": {"precision": "bfloat16"},
    "float32": {"precision": "float32"},
    "highest": {"precision": "float32", "matmul_precision": "highest"},
}
WIDTH = {"bfloat16": 2, "float32": 4, "highest": 4}  # bytes of an activation
SIZE, STORED = 224, 256


def devices_of(target: Target, number: int) -> Sequence[jax.Device]:
    """Devices that one can compile for, and not compute on."""
    options: dict[str, Any] = {}
    if target.platform == "cuda":
        description = Path(__file__).parent / "targets" / f"{target.name}.txtpb"
        options = {"target_config": description.read_text(), "topology": target.topologies[number]}
        name = target.name
    else:
        name = f"{target.name}:{target.topologies[number]}"
    found = topologies.get_topology_desc(platform=target.platform, topology_name=name, **options).devices
    return found[:number]


def lowered(devices: Sequence[jax.Device], task: str, precision: str, batch: int) -> Any:
    """The program of a step over these devices, not compiled yet."""
    mesh = Mesh(np.array(devices), ("batch",))
    axis = "batch" if len(devices) > 1 else None
    config = dataclasses.replace(PRESETS["paper"], **PRECISIONS[precision])
    net = configured_network(tuned(PAPER, devices), config)
    state = jax.eval_shape(lambda: init_state(net, configured_rule(config, 10_009.0)))
    images = jax.ShapeDtypeStruct((batch, STORED, STORED, 3), jnp.uint8)
    whole, parts = PartitionSpec(), PartitionSpec("batch")
    if task == "train":
        statistics = Statistics(np.full((STORED, STORED, 3), 120.0), np.eye(3))
        augment = tuned_augmentation(config, statistics, 10_009.0, devices)
        step, first = make_train_step(net, configured_rule(config, 10_009.0), augment, axis_name=axis), state
    else:
        mean_image = jnp.full((STORED, STORED, 3), 120.0)
        step, first = (
            make_evaluation_step(make_logits(net.apply, mean_image, SIZE, views=TASKS[task]), axis_name=axis),
            state.params,
        )
    if axis:
        step = jax.shard_map(step, mesh=mesh, in_specs=(whole, parts), out_specs=whole, check_vma=False)

    def placed(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda of: jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=sharding), tree)

    batch_of = Batch(images, jax.ShapeDtypeStruct((batch,), jnp.int32))
    donated = (0,) if task == "train" else ()
    return jax.jit(step, donate_argnums=donated).lower(placed(first, whole), placed(batch_of, parts))


def least_bytes(task: str, precision: str, batch: int) -> int:
    """What has to be read and written, of one view an image, if all is fused that fits between two products.

    Parameters: read once by each pass, in float32; in training they and the velocity are read and written once more.
    Images are read once; views are written, and read by conv1, in training twice. Each product writes its output, with
    bias and ReLU, and the next one reads it; normalisation and pooling read what they are of, and write their own.
    On the way back a product reads its input and, twice, the gradient of its output, and writes that of its input. From
    the gradient of what follows a product to that of its output is one pass, which reads the output again, and a byte
    for each place that a pooling chose.
    """
    net, names = AlexNet(PAPER), output_names(PAPER)
    images = jax.ShapeDtypeStruct((batch, SIZE, SIZE, 3), jnp.float32)
    variables = jax.eval_shape(lambda images: net.init(jax.random.key(0), images, train=False), images)
    shapes = jax.eval_shape(lambda *given: outputs(net, *given, names), variables, images)
    parameters = sum(of.size for of in jax.tree.leaves(variables))
    training, before = task == "train", images.size
    numbers = 3 * before if training else 2 * before
    places = 0
    for name in named(PAPER):
        made = last = shapes[name].size
        numbers += made + (before if name != "conv1" else 0)
        for of in (of for of in names if of.startswith(f"{name}:") and of.endswith((":lrn", ":pool"))):
            numbers += last + shapes[of].size
            last = shapes[of].size
        if training:
            numbers += 2 * made + (2 * before if name != "conv1" else 0)
            if last != made or name != "fc8":
                numbers += 2 * made + last
            places += last if last != made else 0
        before = last
    width = WIDTH[precision]
    stored = batch * STORED**2 * 3
    return stored + width * numbers + places + 4 * parameters * (6 if training else 1)


def measured(target: Target, task: str, precision: str, batch: int, devices: int, text: str = "") -> dict[str, Any]:
    program = lowered(devices_of(target, devices), task, precision, batch)
    start = time.process_time()
    compiled = program.compile()
    seconds = time.process_time() - start
    optimised = compiled.as_text()
    if text:
        Path(text).write_text(optimised)
        for moved, name, source in sorted(traffic(optimised), reverse=True)[:25]:
            print(f"{moved / 1e6:9.1f} MB  {name:45} {source[-90:]}")
    moved = sum(of for of, _, _ in traffic(optimised))
    by_xla = {"gigabytes_by_xla": gigabytes_by_xla(compiled)}
    if target.platform == "tpu" and (batch, devices) == (128, 1):
        without = program.compile(compiler_options={"xla_vf_vmem_memory_space_assignment": False})
        by_xla["gigabytes_by_xla_without_copies"] = gigabytes_by_xla(without)
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak += memory.temp_size_in_bytes
    adds = sum(row.multiply_adds for row in summary(PAPER, SIZE)) * (3 if task == "train" else TASKS[task])
    least = least_bytes(task, precision, batch // devices * TASKS[task])
    return {
        "task": task, "precision": precision, "batch": batch, "devices": devices,
        "gigabytes": round(moved / 1e9, 2),
        **by_xla, "least_gigabytes": round(least / 1e9, 2),
        "peak_gigabytes": round(peak / 1e9, 2), "products_not_in_it": wider_products(optimised, precision),
        "memory_ms": round(1e3 * moved / target.memory, 2),
        "computing_ms": round(1e3 * 2 * adds * batch / devices / target.matrix[precision], 2),
        "compile_cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def gigabytes_by_xla(compiled: Any) -> float | None:
    """There is no such account of a GPU's program."""
    cost = compiled.cost_analysis()
    return round((cost[0] if isinstance(cost, list) else cost)["bytes accessed"] / 1e9, 2) if cost else None


def wider_products(text: str, precision: str) -> dict[str, int]:
    """How many of the network's convolutions and matrix products read a wider type than the asked one, by type; and
    where exact ones are asked for, how many are left to the device, as "default".

    Not those that a device's forms use for sums and crops: these are exact on purpose.
    """
    asked = WIDTH[precision]
    types: dict[str, str] = {}
    found: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = \(?([a-z]+\d*)\[.*?(?:\)|\]\S*) ([a-z][\w\-]*)\((.*)", line)
        if not match:
            continue
        name, types[match[1]], kind, rest = match[1], match[2], match[3], match[4]
        source = re.search(r'op_name="([^"]*)"', line)
        if kind not in ("convolution", "dot", "custom-call") or not source or name not in types:
            continue
        is_product = re.search(r"/(conv\d/conv_general_dilated|fc\d/dot_general)$", source[1])
        read = [types.get(of, "") for of in re.findall(r"%([\w.\-]+)", rest.split("), ")[0])[:2]]
        widest = max(read, key=lambda of: BYTES.get(of, 0), default="")
        if is_product and BYTES.get(widest, 0) > asked:
            found[widest] += 1
        if is_product and precision == "highest" and "operand_precision={highest,highest" not in rest:
            found["default"] += 1
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--devices", type=int, choices=[1, 4], action="append")
    parser.add_argument("--text", default="", help="a file for the optimised program of one")
    given = parser.parse_args()
    target, rows = TARGETS[given.target], []
    for of in itertools.product(
        given.task or TASKS, given.precision or PRECISIONS, given.batch or [128, 1024],
        given.devices or [1, 4],
    ):  # fmt: skip
        rows.append(measured(target, *of, text=given.text))
        print(rows[-1], flush=True)
        if not given.text:  # after each, since it may take long
            a_second = {"memory": target.memory, "matrix": target.matrix}
            save(f"compiled_{given.target}", target=given.target, rates=a_second, rows=rows)


if __name__ == "__main__":
    main()
