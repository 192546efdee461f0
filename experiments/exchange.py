"""What devices send each other in a training step, by the way in which it is divided between them; and what gradients
that are sent in bfloat16 do to the loss.

  python experiments/exchange.py                 five minutes on two cores: the bytes
  python experiments/exchange.py --losses        ten minutes: the losses
  python experiments/exchange.py --target=v5e    ten minutes; needs jax[tpu]: which exchanges run beside computing

Expected: with the dense layers in columns, a ninth of data parallelism's bytes on 2 devices, and a third on 8, at 128
images a device: activations grow with the batch, and gradients do not. In bfloat16 half. Bytes are counted in the
programs that XLA compiled, as a ring of devices sends them. The losses in both precisions differ by far less than those
of two seeds.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also where TPUs are compiled for

import argparse
import dataclasses
import functools
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from program_text import bytes_sent
from record import save

from alexnet_jax import (
    PAPER,
    PRESETS,
    AlexNet,
    Config,
    Conv,
    Dense,
    dropout,
    fit,
    init_state,
    make_train_step,
    open_dataset,
    pool,
    relu,
    tuned,
)
from alexnet_jax.data.images import Statistics
from alexnet_jax.device.spread import ModelParallel, spread_over
from alexnet_jax.device.tuned import tuned_augmentation
from alexnet_jax.paper.optim import configured_rule
from alexnet_jax.paper.table import Layers
from alexnet_jax.runs.log import METRICS, read_metrics

WAYS: dict[str, dict[str, Any]] = {
    "data parallel": {},
    "data parallel, gradients in bfloat16": {"exchange_precision": "bfloat16"},
    "dense layers in columns": {"dense_parallel": True},
    "all layers in two columns": {"columns_parallel": True},
}
SEEDS, DEVICES = range(6), 4
SMALL = (  # learns the built-in shapes within a minute
    Conv(24, 11, stride=8, padding=2, then=(relu, pool)),
    Conv(48, 5, padding=2, std=0.02, then=(relu, pool)),
    Dense(256, then=(relu, dropout)),
    Dense(10, std=0.02),
)


def program(layers: Layers, devices: Sequence[jax.Device], batch: int, config: Config) -> Any:
    """A training step of `batch` images over these devices, lowered. Nothing is computed."""
    spread = spread_over(devices, layers, config)
    net = AlexNet(tuned(layers, devices))
    optimizer = configured_rule(config, 10_009.0)
    stored = config.crop_size + 32
    statistics = Statistics(np.full((stored, stored, 3), 120.0), np.eye(3))
    augment = spread.augmentation(tuned_augmentation(config, statistics, 10_009.0, devices))
    step = make_train_step(
        net.clone(layers=spread.layers(net.layers)), optimizer, augment, axis_name=spread.axis,
        mean_gradients=spread.mean_gradients,
    )  # fmt: skip
    state = jax.eval_shape(lambda: init_state(net, optimizer, image_size=config.crop_size))
    shape: tuple[int, ...] = (batch,) if isinstance(spread, ModelParallel) else (len(devices), batch // len(devices))
    images = jax.ShapeDtypeStruct((*shape, stored, stored, 3), jnp.uint8), jax.ShapeDtypeStruct(shape, jnp.int32)
    if isinstance(spread, ModelParallel):
        lying = spread.lying(state), 2 * (NamedSharding(spread.mesh, spread.of_batch),)
        state, images = jax.tree.map(
            lambda of, sharding: jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=sharding), (state, images), lying
        )
    return spread.step(step, donate_state=True).lower(state, images)


def exchanged(layers: Layers, devices: Sequence[jax.Device], batch: int, config: Config) -> dict[str, int]:
    """Bytes that each device sends in a step, by kind of exchange."""
    return bytes_sent(program(layers, devices, batch, config).compile().as_text(), len(devices))


def overlap(text: str) -> dict[str, Any]:
    """Of a scheduled program: each exchange's kind and result, and what is computed between its start and its end."""
    lines = text[text.index("\nENTRY") :].splitlines()
    started: dict[str, int] = {}
    beside, at_once = [], []
    for place, line in enumerate(lines):
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(%?([\w.\-]*)", line)
        if not match:
            continue
        name, shape, kind, operand = match.groups()
        exchange = re.match(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|async)(-\w+)?$", kind)
        if not exchange:
            continue
        if kind.endswith("-start"):
            started[name] = place
        elif kind.endswith("-done"):
            between = lines[started[operand] + 1 : place] if operand in started else []
            kernels = [of for of in between if re.search(r" (fusion|convolution|dot|custom-call)\(", of)]
            beside.append({"exchange": kind.removesuffix("-done"), "result": shape[:80], "kernels": len(kernels)})
        else:
            at_once.append({"exchange": kind, "result": shape[:80]})
    return {"beside kernels": beside, "at once": at_once}


def losses(config: Config) -> dict[str, Any]:
    """Of a run over virtual devices."""
    with tempfile.TemporaryDirectory() as folder:
        errors = fit(SMALL, open_dataset("shapes"), config, folder, devices=jax.devices()[:DEVICES])
        lines = read_metrics(Path(folder) / METRICS)
    return {
        "loss": {str(line["step"]): line["loss"] for line in lines if line["split"] == "train"},
        "nll": errors.nll,
        "top1_error": errors.top1_error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--target", default="", choices=("", "v5e"))
    parser.add_argument("--text", default="", help="a folder for the programs' texts")
    arguments = parser.parse_args()
    if arguments.target:
        from compiled import TARGETS, devices_of

        devices = devices_of(TARGETS[arguments.target], 4)
        found = {}
        for way, flags in [*WAYS.items()][:3]:
            text = program(PAPER, devices, 4 * 128, dataclasses.replace(PRESETS["paper"], **flags)).compile().as_text()
            if arguments.text:
                Path(arguments.text, f"{arguments.target} {way}.txt").write_text(text)
            found[way] = overlap(text)
            print(way, json.dumps(found[way]), flush=True)
        save(f"exchange_{arguments.target}", devices=f"4 × {devices[0].device_kind}", batch_a_device=128, ways=found)
        return

    jax.config.update("jax_num_cpu_devices", 8)
    if arguments.losses:
        of_run = functools.partial(
            dataclasses.replace,
            PRESETS["demo"],
            epochs=3.0,
            learning_rate=0.003,
            learning_rate_drops=(2.0,),
            log_every="0.5epochs",
        )
        runs = []
        for seed in SEEDS:
            for precision in ("float32", "bfloat16"):
                found = losses(of_run(seed=seed, exchange_precision=precision))
                runs.append({"seed": seed, "exchange_precision": precision, **found})
                print(runs[-1], flush=True)
        save("exchange_precision", device="cpu", devices_of_runs=DEVICES, runs=runs)
        return

    sent = []
    for number in (2, 4, 8):
        for way, flags in WAYS.items():
            if "columns_parallel" in flags and number != 2:
                continue
            config = dataclasses.replace(PRESETS["paper"], **flags)
            kinds = exchanged(PAPER, jax.devices()[:number], 128 * number, config)
            sent.append({"devices": number, "way": way, "sent": kinds})
            print(sent[-1], sum(kinds.values()) / 1e6, flush=True)
    save("exchange", device="cpu", batch_a_device=128, sent=sent)


if __name__ == "__main__":
    main()
