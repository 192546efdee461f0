"""How fast `predict` sees files: against inference alone, and against reading and decoding alone.

  python experiments/prediction_speed.py --photos=FOLDER        three minutes on two cores

The networks have random weights; the photographs are read as torchvision does. Interleaved, median of the repeats. On a
CPU the same cores read and compute, and a picture takes the time of the one and of the other. So there is one network
more, in whose place this waits, without a core, for as long as a picture takes to read: a device of its own at the rate
at which the one waits for the other most. Expected: "together" is at least 90 % of what the same cores can, and with
the device at least 90 % of the slower one.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from record import save

from alexnet_jax import ARCHITECTURES, AlexNet, Trained
from alexnet_jax.config import Config
from alexnet_jax.data.preprocessing import TORCHVISION
from alexnet_jax.networks import network as networks
from alexnet_jax.paper.train_state import init_params
from alexnet_jax.predict import files_of, predictions


def random_network(architecture: str) -> Trained:
    net = AlexNet(ARCHITECTURES[architecture])
    params = jax.jit(lambda key: init_params(net, key, 224))(jax.random.key(0))
    names = tuple(f"class {number}" for number in range(net.layers[-1].features))
    mean_image = np.full((256, 256, 3), 120.0)
    return Trained(Path("random"), 0, Config(), "", names, mean_image, net, params, TORCHVISION)


@dataclasses.dataclass(frozen=True)
class Pending:
    """What is there once a device has computed it, as an array of JAX."""

    done: Future[None]
    rows: np.ndarray

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self.done.result()
        return self.rows


DEVICE = ThreadPoolExecutor(1)  # which computes one thing after the other


@dataclasses.dataclass(frozen=True)
class Waiting(Trained):
    """A network that takes its time, and no core; its answers are none."""

    seconds: float = 0.0  # for a picture

    def probabilities(self, images: Any, *, views: int = 1) -> Any:
        rows = np.zeros((len(images), len(self.class_names)), np.float32)
        return Pending(DEVICE.submit(time.sleep, self.seconds * len(images)), rows)


def waiting(network: Trained, seconds: float) -> Waiting:
    return Waiting(**{of.name: getattr(network, of.name) for of in dataclasses.fields(network)}, seconds=seconds)


def rate(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--architectures", default="demo,paper")
    parser.add_argument("--times", type=int, default=8, help="each photograph so often")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    files = files_of([arguments.photos]) * arguments.times
    named = {name: random_network(name) for name in arguments.architectures.split(",")}
    last = [*named.values()][-1]
    named["a device apart"] = waiting(last, 1 / rate(len(files), lambda: [*last.read(files)]))
    found = {}
    for name, network in named.items():
        images = next(network.read(files))[0]
        batches = len(files) // len(images)
        np.asarray(network.probabilities(images))  # compiled

        def infer(network: Trained = network, images: np.ndarray = images, batches: int = batches) -> None:
            for _ in range(batches):
                np.asarray(network.probabilities(images))

        rates: dict[str, list[float]] = {"inference": [], "reading": [], "together": []}
        for _ in range(arguments.repeats):
            rates["inference"].append(rate(batches * len(images), infer))
            rates["reading"].append(rate(len(files), lambda network=network: [*network.read(files)]))
            rates["together"].append(rate(len(files), lambda network=network: [*predictions(network, files)]))
        medians = {kind: statistics.median(values) for kind, values in rates.items()}
        slower = min(medians["inference"], medians["reading"])
        shared = 1 / (1 / medians["inference"] + 1 / medians["reading"])
        found[name] = {
            "images_per_second": {kind: round(of, 1) for kind, of in medians.items()},
            "of_the_slower_one": round(medians["together"] / slower, 3),
            "of_what_the_same_cores_can": round(medians["together"] / shared, 3),
        }
    save(
        "prediction_speed",
        device=jax.devices()[0].device_kind,
        batch=networks.BATCH,
        photographs=len({*files}),
        times=arguments.times,
        repeats=arguments.repeats,
        networks=found,
    )


if __name__ == "__main__":
    main()
