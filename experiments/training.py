"""What the experiments on training share: parts of data sets, a loop to look into, errors, the command line."""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from record import circumstances

from alexnet_jax import (
    Config,
    Dataset,
    Errors,
    Trained,
    TrainState,
    init_state,
    make_train_step,
    open_dataset,
)
from alexnet_jax.data import input_pipeline
from alexnet_jax.data.images import ENCODINGS
from alexnet_jax.data.shards import Records
from alexnet_jax.device import parallel
from alexnet_jax.device.spread import Spread
from alexnet_jax.device.tuned import tuned, tuned_augmentation
from alexnet_jax.files import write_whole
from alexnet_jax.networks.ensemble import answers_of, outcomes
from alexnet_jax.paper.evaluate import evaluate, make_evaluation_step, make_logits
from alexnet_jax.paper.model import configured_network
from alexnet_jax.paper.optim import configured_rule
from alexnet_jax.paper.table import Layers
from alexnet_jax.train import with_input


class OneIn(Records):
    """One in n examples of a split: the first, and each n-th after it."""

    def __init__(self, n: int, records: Records):
        self._records, self._numbers = records, range(0, len(records), n)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[self._numbers[index]]

    def place(self, index: int) -> str:
        return self._records.place(self._numbers[index])


def one_in(n: int, dataset: Dataset) -> Dataset:
    """The data set with one in n of its training images; their mean is that of all."""
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": OneIn(n, dataset.splits["train"])})


class Centers(Records):
    """The centre of each image of a split, `size` pixels wide."""

    def __init__(self, size: int, dataset: Dataset, split: str):
        self._size, self._dataset, self._records = size, dataset, dataset.splits[split]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example, whole = self._records[index], self._dataset.size
        image = np.empty((whole, whole, 3), np.uint8)
        ENCODINGS[self._dataset.encoding].decode(example["image"], image)
        return {**example, "image": center(image, self._size).tobytes()}

    def place(self, index: int) -> str:
        return self._records.place(index)


def center(image: np.ndarray, size: int) -> np.ndarray:
    margin = (len(image) - size) // 2
    return image[margin : margin + size, margin : margin + size]


def centers(size: int, dataset: Dataset) -> Dataset:
    """The data set with only the centre of each image."""
    statistics = dataclasses.replace(dataset.statistics, mean_image=center(dataset.statistics.mean_image, size))
    splits = {split: Centers(size, dataset, split) for split in dataset.splits}
    return dataclasses.replace(dataset, size=size, encoding="raw", splits=splits, statistics=statistics)


def configured_step(
    layers: Layers, config: Config, dataset: Dataset, devices: Sequence[jax.Device]
) -> tuple[Callable, TrainState]:
    """The step of `fit`, to be compiled, and the state before the first one, on the devices."""
    steps_per_epoch = len(dataset.splits["train"]) / config.batch_size
    net = configured_network(tuned(layers, devices), config)
    optimizer = configured_rule(config, steps_per_epoch)
    augment = tuned_augmentation(config, dataset.statistics, steps_per_epoch, devices)
    step = make_train_step(net, optimizer, augment, seed=config.seed, axis_name=parallel.axis_of(devices))
    state = init_state(net, optimizer, image_size=config.crop_size, seed=config.seed)
    return step, parallel.replicate(state, devices)


class Run:
    """What `fit` trains, in a loop to look into: at the errors on several splits, and to stop before the end."""

    def __init__(self, layers: Layers, config: Config, dataset: Dataset):
        self.config, self.dataset = dataclasses.replace(config, cache="device"), dataset
        self.steps_per_epoch = len(dataset.splits["train"]) / config.batch_size
        self.devices = parallel.all_devices()
        self._step, self.state = configured_step(layers, config, dataset, self.devices)
        self._net = configured_network(tuned(layers, self.devices), config)
        self._evaluation: dict[str, Any] = {}

    def epochs(self, until: float, every: float) -> Iterator[float]:
        """Trains to the epoch `until`, and stops every `every` epochs for the caller to look."""
        total = round(until * self.steps_per_epoch)
        step_on_all, indices = with_input(self._step, self.config, self.dataset, Spread(self.devices), range(total))
        looks = {round(number * every * self.steps_per_epoch) for number in range(1, round(until / every))} | {total}
        before = None
        for step, batch in enumerate(parallel.shard_ahead(indices, self.devices), start=1):
            self.state, metrics = step_on_all(self.state, batch)
            jax.block_until_ready(before)  # two steps at most are on the way
            before = metrics
            if step in looks:
                yield step / self.steps_per_epoch

    def errors(self, split: str) -> Errors:
        """Of the network as it is now, over a whole split."""
        if split not in self._evaluation:  # the images stay on the devices
            batches = input_pipeline.evaluation_batches(self.dataset, split, batch_size=256)
            mean_image = jnp.asarray(self.dataset.statistics.mean_image, jnp.float32)
            logits = make_logits(self._net.apply, mean_image, self.config.crop_size)
            axis = parallel.axis_of(self.devices)
            step = parallel.pmap_step(make_evaluation_step(logits, axis_name=axis), self.devices)
            self._evaluation[split] = step, [parallel.shard(batch, self.devices) for batch in batches]
        step, batches = self._evaluation[split]
        return evaluate(step, self.state.params, batches, len(self.dataset.splits[split]))[0]


def errors_of(network: Trained, dataset: Dataset, split: str, views: int = 1) -> Errors:
    """Of a network that `fit` has left, over a whole split."""
    answers = answers_of(network, dataset, split, views=views, batch_size=256)
    means = {name: float(of_images.mean()) for name, of_images in outcomes(answers).items()}
    return Errors(**means, examples=len(answers.labels))


def smoothed(errors: list[float]) -> list[float]:
    """Of each, the mean with its neighbours."""
    return [statistics.mean(errors[max(0, place - 1) : place + 2]) for place in range(len(errors))]


def reached(points: list[tuple[float, float]], target: float) -> float | None:
    """Of points (epoch, error): the epoch at which the smoothed error falls through the target; None if it does not."""
    means = smoothed([error for _, error in points])[:-1]  # the last has but one neighbour
    for place in range(1, len(means)):
        if means[place] <= target:
            before, after = points[place - 1][0], points[place][0]
            return before + (after - before) * (means[place - 1] - target) / (means[place - 1] - means[place])
    return None


def parsed(doc: str, epochs: float | None = None, *, quick: bool = True, **parts: Iterable[str]) -> argparse.Namespace:
    """The command line of an experiment. parts: flags that choose one of these, by default all (a list)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--workdir", type=Path)
    if quick:
        where.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    if epochs is not None:
        parser.add_argument("--epochs", type=float, default=epochs)
    for flag, names in parts.items():
        parser.add_argument(f"--{flag}", choices=names, nargs=1, default=[*names])
    return parser.parse_args()


def remembered(file: Path, dataset: str, compute: Callable[[], Any]) -> dict[str, Any]:
    """{"result": what `compute` gave, and when, where and on what data}: from the file, if it was computed before."""
    data = open_dataset(dataset).fingerprint()
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["data"] != data:
            sys.exit(f"{file}: was computed on another data set than {dataset}; give another --workdir")
        return kept
    kept = {"result": compute(), "data": data, "device": jax.devices()[0].device_kind, **circumstances()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(kept))
    return kept
