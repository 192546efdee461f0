"""The AlexNet of 2012 in JAX: https://papers.nips.cc/paper/4824, section by section.

- `alexnet_jax.architectures`, `alexnet_jax.model` (§3): the architectures as tables of layers, and what walks them
- `alexnet_jax.layers` (§3): the operations
- `alexnet_jax.augment` (§4.1): crops, reflections, PCA colour, ten views
- `alexnet_jax.optim` (§5): the update rule and the learning-rate schedule
- `alexnet_jax.train` (§5): the training step and the loop
- `alexnet_jax.evaluate` (§6): exact errors
- `alexnet_jax.trained`, `alexnet_jax.features`: a trained network, and the outputs of its layers
"""

from alexnet_jax import augment, layers, optim
from alexnet_jax.architectures import ARCHITECTURES, PAPER, Conv, Dense
from alexnet_jax.config import PRESETS, Config
from alexnet_jax.model import AlexNet, summary
from alexnet_jax.optim import sgd

__all__ = [
    "ARCHITECTURES",
    "PAPER",
    "PRESETS",
    "AlexNet",
    "Config",
    "Conv",
    "Dense",
    "augment",
    "layers",
    "optim",
    "sgd",
    "summary",
]
