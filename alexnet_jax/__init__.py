"""The AlexNet of 2012 in JAX: https://papers.nips.cc/paper/4824, section by section.

model    §3    the architectures as tables of layers, AlexNet, summary
layers   §3    the operations
augment  §4.1  crops, reflections, PCA colour, ten views
optim    §5    the update rule and the learning-rate schedule
train    §5    the training step and the loop
evaluate §6    exact errors
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
