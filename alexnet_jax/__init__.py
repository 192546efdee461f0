"""The AlexNet of 2012 in JAX: https://papers.nips.cc/paper/4824, section by section.

- `alexnet_jax.paper.architectures`, `alexnet_jax.paper.model` (§3): tables of layers, and what walks them
- `alexnet_jax.paper.layers` (§3): the operations
- `alexnet_jax.paper.augment` (§4.1): crops, reflections, PCA colour, ten views
- `alexnet_jax.paper.optim` (§5): the update rule and the learning-rate schedule
- `alexnet_jax.train` (§5): the training step and the loop
- `alexnet_jax.paper.evaluate` (§6): exact errors
- `alexnet_jax.networks.network`, `alexnet_jax.networks.layer_outputs`: a trained network, and the outputs of its layers
"""

from alexnet_jax.config import PRESETS, Config
from alexnet_jax.paper import augment, layers, optim
from alexnet_jax.paper.architectures import ARCHITECTURES, PAPER, Conv, Dense
from alexnet_jax.paper.model import AlexNet, summary
from alexnet_jax.paper.optim import sgd

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
