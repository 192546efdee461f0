"""Pictures for the tests, and small data sets of them; without JAX, for which each worker process waits seconds."""

import functools
import time

import numpy as np

from alexnet_jax.data import datasets, shards

SIZE, NAMES = 40, ("red", "green", "blue")


def picture(label: int, seed: int, size: int = SIZE) -> np.ndarray:
    """Noise of a colour: class 0 is reddish, 1 greenish, 2 bluish."""
    pixels = np.random.default_rng(seed).integers(0, 100, (size, size, 3), dtype=np.uint8)
    pixels[..., label] += 120
    return pixels


def slow_picture() -> np.ndarray:
    time.sleep(0.02)
    return picture(0, 0, 20)


def fail():
    raise ValueError("is bad")


def items(split: int, count: int) -> list[shards.Item]:
    return [
        shards.Item(f"{split}/{i}", f"{split}/{i}", i % 3, functools.partial(picture, i % 3, 1000 * split + i))
        for i in range(count)
    ]


def write(path, train=50, validation=13, **options):
    splits = {"train": items(0, train), "validation": items(1, validation)}
    return datasets.write(path, NAMES, splits, size=24, **options)
