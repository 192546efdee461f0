"""Whether the training step waits for its images: its rate on images that are read, against one batch that stays.

  python -m alexnet_jax.prepare --source=PHOTOS --output=jpeg
  python -m alexnet_jax.prepare --source=PHOTOS --output=raw --encoding=raw
  python experiments/feeding.py --jpeg=jpeg --raw=raw --architecture=demo --batch_size=64          4 minutes, two cores
  python experiments/feeding.py --jpeg=jpeg --raw=raw --batch_size=1024 --dtype=bfloat16 --steps=300      on a GPU

The whole training step of `main`: augmentation, network, update. Its batches are one that lies on the device
("synthetic"), gathered there out of all images (--cache=device), or read, decoded and sent. Interleaved, median of the
repeats; `steps` many times as long as what may have been read ahead. The first losses must agree, read or cached.
Expected: with --cache=device or raw images within 5 % of synthetic.
"""

import argparse
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator

import jax
from record import save
from training import configured_step

from alexnet_jax import ARCHITECTURES, Config, Dataset, open_dataset, with_classes
from alexnet_jax.device import parallel
from alexnet_jax.device.spread import Spread
from alexnet_jax.paper.architectures import CAFFE_IMAGE_SIZE
from alexnet_jax.paper.table import Layers
from alexnet_jax.train import with_input


def training(
    dataset: Dataset, config: Config, devices: list[jax.Device], layers: Layers, synthetic: bool = False
) -> Iterator:
    """Does one training step each time it is asked for one; gives the step's metrics."""
    step, state = configured_step(layers, config, dataset, devices)
    mapped, read_batches = with_input(step, config, dataset, Spread(devices), range(10**6))
    batches = parallel.shard_ahead(read_batches, devices)
    if synthetic:
        batches = itertools.repeat(next(batches))
    for batch in batches:
        state, metrics = mapped(state, batch)
        yield metrics


def rate(metrics: Iterator, steps: int, batch_size: int) -> float:
    """Images/s over the next steps, two of them on the way at most, as in the loop of `train`."""
    jax.block_until_ready(list(itertools.islice(metrics, 5)))
    start, before = time.perf_counter(), None
    for found in itertools.islice(metrics, steps):
        jax.block_until_ready(before)
        before = found
    jax.block_until_ready(before)
    return steps * batch_size / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jpeg", required=True)
    parser.add_argument("--raw", required=True)
    parser.add_argument("--architecture", default="paper", choices=ARCHITECTURES)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    devices = jax.local_devices()
    size = CAFFE_IMAGE_SIZE if arguments.architecture == "caffe" else 224
    config = Config(batch_size=arguments.batch_size, crop_size=size, precision=arguments.dtype)
    jpeg, raw = open_dataset(arguments.jpeg), open_dataset(arguments.raw)
    layers = with_classes(ARCHITECTURES[arguments.architecture], 1000)
    cached = dataclasses.replace(config, cache="device")
    feeds = {
        "synthetic": training(raw, config, devices, layers, synthetic=True),
        "--cache=device": training(raw, cached, devices, layers),
        "raw": training(raw, config, devices, layers),
        "JPEG": training(jpeg, config, devices, layers),
    }
    first = {name: float(next(feeds[name])["loss"]) for name in ("--cache=device", "raw")}
    assert math.isclose(*first.values(), rel_tol=1e-3), first
    rates: dict[str, list[float]] = {name: [] for name in feeds}
    for _ in range(arguments.repeats):
        for name, metrics in feeds.items():
            rates[name].append(rate(metrics, arguments.steps, config.batch_size))
            print(f"{name}: {rates[name][-1]:,.1f} images/s", flush=True)
    save(
        f"feeding_{devices[0].platform}",
        architecture=arguments.architecture,
        batch_size=config.batch_size,
        dtype=arguments.dtype,
        device=f"{len(devices)} × {devices[0].device_kind}",
        steps=arguments.steps,
        images_per_second={name: round(statistics.median(found), 1) for name, found in rates.items()},
        all={name: [round(one, 1) for one in found] for name, found in rates.items()},
    )


if __name__ == "__main__":
    main()
