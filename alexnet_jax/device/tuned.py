"""Which forms of the network's operations are used on a device."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from alexnet_jax.config import Config
from alexnet_jax.data.images import Statistics
from alexnet_jax.device import accelerator_forms, forms, onednn
from alexnet_jax.device.xla import kept
from alexnet_jax.paper import layers as formulas
from alexnet_jax.paper.augment import patches
from alexnet_jax.paper.table import Layers, Step
from alexnet_jax.paper.train_step import Augment, papers_augmentation

# By platform: formula → form. What is not here is left to the compiler.
FORMS: dict[str, dict[Callable, Callable]] = {
    "cpu": {
        formulas.conv2d: forms.conv2d_of_onednn,
        formulas.max_pool: forms.max_pool,
        formulas.dense: forms.dense_of_onednn,
        formulas.add_bias: forms.add_bias,
        formulas.local_response_norm: forms.local_response_norm,
    },
    "gpu": {
        formulas.add_bias: accelerator_forms.add_narrow_bias,
        formulas.relu: accelerator_forms.relu,
        formulas.max_pool: accelerator_forms.max_pool_of_gpu,
        formulas.local_response_norm: accelerator_forms.local_response_norm_of_gpu,
    },
    "tpu": {
        formulas.add_bias: accelerator_forms.add_narrow_bias,
        formulas.relu: accelerator_forms.relu,
        formulas.local_response_norm: accelerator_forms.local_response_norm_of_tpu,
        patches: accelerator_forms.patches_by_product,
    },
}

WITHOUT_ONEDNN: dict[Callable, Callable] = {formulas.conv2d: forms.conv2d, formulas.dense: forms.dense}


def tuned(layers: Layers, devices: Sequence[jax.Device] | None = None) -> Layers:
    """The same table with the operations that are fastest on these devices (by default, all): with the same names,
    shapes, initial values and written form. For these devices only, and for reverse-mode gradients.

    On CPUs: oneDNN's convolutions and products (see `missing_forms`), or XLA's, group by group; pooling that remembers
    places; gradients of normalisation, dense layers and biases by hand. On GPUs and TPUs: normalisation, ReLU and
    biases that move fewer bytes, and on GPUs such a pooling; their compilers do the rest.
    """
    faster = functools.partial(form_for, devices=devices)

    def step(of: Any) -> Step:
        return dataclasses.replace(of, function=faster(of.function))

    return tuple(
        dataclasses.replace(
            layer,
            operation=faster(layer.operation),
            add_bias=faster(layer.add_bias),
            then=tuple(map(step, layer.then)),
        )
        for layer in layers
    )


def tuned_augmentation(
    config: Config, statistics: Statistics, steps_per_epoch: float, devices: Sequence[jax.Device] | None = None
) -> Augment:
    """`papers_augmentation`, as it is fastest on these devices (by default, all)."""
    cut = form_for(patches, devices)
    return kept(papers_augmentation(config, statistics, steps_per_epoch, cut=cut), devices or jax.devices())


def form_for(formula: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """The fastest form of one formula on these devices (by default, all), which may be the formula itself."""
    platform = (devices or jax.devices())[0].platform
    if formula in WITHOUT_ONEDNN and platform == "cpu" and onednn.missing():
        return WITHOUT_ONEDNN[formula]
    return FORMS.get(platform, {}).get(formula, formula)


def missing_forms(devices: Sequence[jax.Device] | None = None) -> str:
    """What is not as fast as it could be on these devices, and why, in a line; nothing where all is."""
    if (devices or jax.devices())[0].platform != "cpu":
        return ""
    reason = onednn.missing()
    return f"slower than it could be, without oneDNN's convolutions and products ({reason})" if reason else ""
