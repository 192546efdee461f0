"""The AlexNet of 2012 in JAX: https://papers.nips.cc/paper/4824, section by section.

The names below are loaded when they are first used: `import alexnet_jax` alone imports neither JAX nor anything else.

- `alexnet_jax.paper`: §3 the network, §4 the augmentation, §5 the training, §6 the errors, as formulas
- `alexnet_jax.data`: §2, images from wherever they lie to batches
- `alexnet_jax.device`: several devices and hosts, and the fastest forms of the operations
- `alexnet_jax.runs`: a run's folder
- `alexnet_jax.networks`: trained networks
- `alexnet_jax.train`: `fit`
"""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

_MODULES = {
    "config": ("PRESETS", "Config", "InputError"),
    "data.datasets": ("Dataset", "open_dataset"),
    "data.input_pipeline": ("training_batches",),
    "device.tuned": ("tuned",),
    "device.xla": ("compiler_options",),
    "networks.layer_outputs": ("features_of_split",),
    "networks.loading": ("load",),
    "networks.network": ("Trained",),
    "paper.architectures": ("ARCHITECTURES", "CAFFE", "DEMO", "ORIGINAL", "PAPER", "TORCHVISION"),
    "paper.augment": (
        "center_view", "image_keys", "pca_color", "random_crop", "random_reflection", "split_each", "subtract_mean",
        "ten_views",
    ),
    "paper.evaluate": ("Errors",),
    "paper.layers": (
        "STEPS", "average_pool", "conv2d", "dense", "dropout", "local_response_norm", "locally_connected", "lrn",
        "max_pool", "pool", "relu", "spatial_response_norm", "takes_key",
    ),
    "paper.model": ("AlexNet", "outputs", "summary"),
    "paper.optim": ("by_parameter", "papers_rule", "plateau_after", "step_schedule", "with_plateau"),
    "paper.table": ("Conv", "Dense", "Local", "with_classes", "with_column", "with_layers", "with_steps"),
    "paper.train_state": ("TrainState", "init_state"),
    "paper.train_step": ("make_train_step", "papers_augmentation"),
    "paper.written": ("from_json", "to_json"),
    "train": ("Metrics", "fit"),
}  # fmt: skip
_PLACES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *sorted(_PLACES)]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
