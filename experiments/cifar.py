"""CIFAR-10 for the experiments: the networks of 2012 as tables, and quick results to compare with.

The images are prepared by the package at their own size, for example

  python -m alexnet_jax.prepare --source=cifar-10-python.tar.gz --output=cifar10
"""

import dataclasses
import functools
import sys

from record import RESULTS, log, save
from training import Run

from alexnet_jax import Conv, Dense, Local, average_pool, local_response_norm, max_pool, relu
from alexnet_jax.paper.table import Layers

QUICK_BAND = 0.02  # by which the errors of --quick may differ on another machine
largest = functools.partial(max_pool, window=3, stride=2, ceil_mode=True)
average = functools.partial(average_pool, window=3, stride=2)
across_maps = functools.partial(local_response_norm, size=9, k=1.0, alpha=0.001 / 9, beta=0.75)

# layers-19pct.cfg and layers-80sec.cfg of cuda-convnet.
THREE_CONV: Layers = (
    Conv(32, 5, padding=2, std=1e-4, then=(relu, largest)),
    Conv(32, 5, padding=2, std=0.01, then=(relu, average)),
    Conv(64, 5, padding=2, std=0.01, then=(relu, average)),
    Dense(10, std=0.01),
)
THREE_CONV_TWO_DENSE: Layers = (*THREE_CONV[:3], Dense(64, std=0.1, then=(relu,)), Dense(10, std=0.1))

# layers-conv-local-13pct.cfg.
CONV_LOCAL: Layers = (
    Conv(64, 5, padding=2, std=1e-4, then=(relu, largest)),
    Conv(64, 5, padding=2, std=0.01, then=(relu, largest)),
    Local(32, 3, padding=1, std=0.04, then=(relu,)),
    Local(32, 3, padding=1, std=0.04, then=(relu,)),
    Dense(10, std=0.01),
)


def with_normalization(layers: Layers) -> Layers:
    """The table with conv1 normalised after its pooling and conv2 before, as in layers-conv-local-11pct.cfg."""
    first, second, *others = layers
    first = dataclasses.replace(first, then=(relu, largest, across_maps))
    second = dataclasses.replace(second, then=(relu, across_maps, largest))
    return (first, second, *others)


# layers-conv-local-11pct.cfg: its local3 is wider as well.
CONV_LOCAL_11: Layers = tuple(
    dataclasses.replace(layer, features=64) if number == 2 else layer
    for number, layer in enumerate(with_normalization(CONV_LOCAL))
)


def check_quick(name: str, found: dict[str, float]) -> None:
    """Says whether errors are within QUICK_BAND of those kept in results/; keeps them where there are none."""
    if not (RESULTS / f"{name}_quick.json").exists():
        print("there was no result to compare with; kept now:", found)
        save(f"{name}_quick", errors=found)
        return
    kept = log(f"{name}_quick")["errors"]
    for of, error in found.items():
        print(f"{of}: {error:.1%}; kept: {kept[of]:.1%}")
    if any(abs(found[of] - kept[of]) > QUICK_BAND for of in kept):
        sys.exit(f"differs by more than {100 * QUICK_BAND:g} points")


def error_after(run: Run, steps: int, split: str) -> float:
    """Top-1 error on a split after the first steps."""
    list(run.epochs(steps / run.steps_per_epoch, every=steps))
    return run.errors(split).top1_error
