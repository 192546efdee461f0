"""Config: how a network is trained, flat and frozen; the presets; and the names of the architectures. No JAX."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

from alexnet_jax.options import LARGEST_FACTOR, InputError, check_bounds, check_choice, in_steps, joined, option, short

# Of architectures.ARCHITECTURES, for --help, which waits for no import.
ARCHITECTURE_NAMES = (
    "paper", "original", "one_gpu", "no_normalization", "non_overlapping_pooling", "six_conv", "caffe", "torchvision",
    "demo",
)  # fmt: skip

CACHES, PRECISIONS = ("none", "device"), ("float32", "bfloat16")
MATMUL_PRECISIONS = ("default", "high", "highest")
_CHOICES = {
    "cache": CACHES, "precision": PRECISIONS, "matmul_precision": MATMUL_PRECISIONS, "exchange_precision": PRECISIONS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """How a network is trained. Each field is also a flag of `main`; its help text below is the flag's.

    Raises InputError for an impossible value.
    """

    cache: str = option(
        "none", "device: read the training images once and keep them on each device; none: read each batch. The "
        "results are the same", decides=False,
    )  # fmt: skip
    cache_budget: float = option(4.0, "gigabytes on each device that --cache=device may take", above=0, decides=False)
    crop_size: int = option(224, "side of the patch that the network sees, in pixels (§4.1)", minimum=1)
    reflect: bool = option(True, "whether images are mirrored at random (§4.1)")
    crop_to_edge: bool = option(False, "whether patches reach the bottom and right edge: 33 × 33 places, not 32 × 32")
    crop_chunk: int = option(1, "images in a row that share one patch and one reflection", minimum=1)
    center_mean: bool = option(False, "subtract the mean image's centre from every patch, not each pixel's own mean")
    color_scale: float = option(
        0.1, "standard deviation of the PCA colour's coefficients (§4.1); 0: off", minimum=0, maximum=LARGEST_FACTOR
    )
    color_rescale: bool = option(False, "divide the image by 1 + color_scale once its colour is added")
    color_off_from: float = option(0.0, "epoch from which there is no PCA colour; 0: never", minimum=0)
    precision: str = option(
        "float32", "of the network's computation, float32 or bfloat16; parameters, loss and update are float32"
    )
    matmul_precision: str = option(
        "default", "of convolutions and products in float32. default: what the device is fastest in, bfloat16 on TPUs, "
        "TF32 on GPUs since Ampere; high: in three passes of bfloat16 on TPUs, TF32 on GPUs; highest: float32"
    )  # fmt: skip
    dense_parallel: bool = option(
        False, "each device holds its columns of the dense layers, rather than all of them; the results are the same, "
        "and less is sent (docs/parallel.md)", decides=False,
    )  # fmt: skip
    columns_parallel: bool = option(
        False, "each of two devices holds half of every layer and sees the whole batch (§3.2); the results are the "
        "same", decides=False,
    )  # fmt: skip
    exchange_precision: str = option(
        "float32", "of the gradients that devices send each other, float32 or bfloat16; they are added in float32"
    )
    batch_size: int = option(128, "images a step, over all devices together (§5)", minimum=1)
    epochs: float = option(90.0, "times through the training set; a fraction is possible", above=0)
    learning_rate: float = option(0.01, "the first learning rate (§5)", above=0, maximum=LARGEST_FACTOR)
    learning_rate_drops: tuple[float, ...] = option(
        (), "epochs at which the learning rate is divided, comma-separated (§5)", above=0
    )
    learning_rate_divisor: float = option(10.0, "what rates are divided by at such epochs", minimum=1)
    warmup_epochs: float = option(0.0, "epochs over which all rates rise from 0, step by step; 0: none", minimum=0)
    plateau_patience: int = option(
        0, "instead of those epochs, divide all rates by 10 after so many evaluations in a row without a new lowest "
        "validation top-1 error, three times at most (§5); 0: off",
        minimum=0,
    )  # fmt: skip
    conv1_learning_rate_drops: tuple[float, ...] = option(
        (), "epochs at which the rate of conv1's weights is divided; none: as for the others", above=0
    )
    conv1_frozen_from: float = option(0.0, "epoch from which conv1 is kept as it is; 0: never", minimum=0)
    bias_learning_rate: float = option(
        0.0, "learning rate of the biases; 0: at all times that of the weights", minimum=0, maximum=LARGEST_FACTOR
    )
    bias_learning_rate_drops: tuple[float, ...] = option(
        (), "epochs at which bias_learning_rate is divided, where it is given", above=0
    )
    decay_biases: bool = option(True, "whether the weight decay falls on biases too")
    init_from: str = option(
        "",
        "folder of a run, from whose last checkpoint each layer is taken whose name and shapes agree (§6); or a "
        ".safetensors, torchvision, caffe. main: without --architecture and --preset, its network is trained",
    )
    taken_rate_scale: float = option(
        0.1,
        "what multiplies the learning rates of the weights taken with init_from (2012: 0.1); their biases keep theirs; "
        "0: both stay as they are",
        minimum=0,
        maximum=LARGEST_FACTOR,
    )
    frozen_layers: tuple[str, ...] = option(
        (), "layers taken with init_from that stay as they are, comma-separated, as conv1,conv2"
    )
    momentum: float = option(0.9, "momentum (§5)", minimum=0, below=1)
    weight_decay: float = option(5e-4, "weight decay (§5)", minimum=0, maximum=LARGEST_FACTOR)
    trust_coefficient: float = option(
        0.0, "LARS, for large batches: learning_rate is in units of this times the ratio of the norm of a layer's "
        "weights to that of their gradient; biases have bias_learning_rate; 0: the paper's rule",
        minimum=0, maximum=LARGEST_FACTOR,
    )  # fmt: skip
    seed: int = option(
        0,
        "of the initial weights, the order of images, the augmentation and dropout",
        minimum=0,
        below=2**63,
        maximum=2**63,
    )
    log_every: int | str = option(
        10, "steps, or epochs as in 0.5epochs, between lines in metrics.jsonl and TensorBoard; there is one at the "
        "end, too",
    )  # fmt: skip
    evaluate_every: int | str = option(
        "1epoch", "steps or epochs between evaluations, which plateau_patience counts; there is one at the end, too"
    )
    checkpoint_every: int | str = option(
        "1epoch", "steps or epochs between checkpoints; there is one at each new lowest validation top-1 error and at "
        "the end, too", decides=False,
    )  # fmt: skip
    keep_checkpoints: int = option(
        2, "how many of the last checkpoints are kept, beside the one with the lowest validation top-1 error",
        minimum=1, decides=False,
    )  # fmt: skip
    stall_timeout: float = option(
        600.0, "seconds that a batch may take to be read, before the run ends with an error", above=0, decides=False
    )

    def __post_init__(self):
        check_bounds(self)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        parallel = [f"--{name}" for name in ("dense_parallel", "columns_parallel") if getattr(self, name)]
        if len(parallel) > 1:
            raise InputError("--dense_parallel: cannot be with --columns_parallel; give one of the two")
        if parallel and self.exchange_precision != "float32":
            raise InputError(f"--exchange_precision={self.exchange_precision}: cannot be with {parallel[0]}")
        for name in ("log_every", "evaluate_every", "checkpoint_every"):
            try:
                in_steps(getattr(self, name), Fraction(1))
            except ValueError as error:
                raise InputError(f"--{name}={short(getattr(self, name))}: {error}") from error
        for name in ("learning_rate_drops", "conv1_learning_rate_drops", "bias_learning_rate_drops"):
            if self.plateau_patience and getattr(self, name):
                drops, patience = joined(getattr(self, name)), self.plateau_patience
                raise InputError(
                    f"--{name}={drops}: cannot be with --plateau_patience={patience}; "
                    f"give --plateau_patience=0 or --{name}="
                )
        if self.bias_learning_rate_drops and not self.bias_learning_rate:
            drops = joined(self.bias_learning_rate_drops)
            raise InputError(f"--bias_learning_rate_drops={drops}: without --bias_learning_rate they drop nothing")
        if self.trust_coefficient and not self.bias_learning_rate:
            raise InputError(
                f"--trust_coefficient={self.trust_coefficient}: needs --bias_learning_rate, of its own scale"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON keeps them (tuples as lists)."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


def for_batch(config: Config, batch_size: int, rule: str = "linear") -> Config:
    """The config at k times its batch size, by one of the two rules of Krizhevsky 2014 (arXiv:1404.5997, page 5).

    linear: what he found best, up to 1,024 images: the rates times k, the weight decay as it is.
    sqrt: what theory suggests: the rates ε times √k, which keeps the variance of a step; and a decay d' that takes in
    one step what d took in k, 1 - ε'·d' = (1 - ε·d)ᵏ.

    Raises InputError for another rule, or an impossible batch size.
    """
    check_choice("rule", rule, ("linear", "sqrt"))
    k = batch_size / config.batch_size
    scale, rate, decay = k, config.learning_rate, config.weight_decay
    if rule == "sqrt":
        scale = math.sqrt(k)
        decay = (1 - max(0.0, 1 - rate * decay) ** k) / (scale * rate)
    return dataclasses.replace(
        config,
        batch_size=batch_size,
        learning_rate=scale * rate,
        bias_learning_rate=scale * config.bias_learning_rate,
        weight_decay=decay,
    )


def network_of(preset: str) -> str:
    """The architecture that is trained with a preset where none is named."""
    return preset if preset in ARCHITECTURE_NAMES else "paper"


PRESETS: dict[str, Config] = {
    # Minutes on a laptop's CPU.
    "demo": Config(batch_size=32, epochs=4.0, learning_rate_drops=(3.0,)),
    # As the text says. Where it is silent: five evaluations (epochs) without improvement are "stopped improving".
    "paper": Config(epochs=90.0, plateau_patience=5),
    # As the code of 2012 ran its net 145, by the epochs in its log.
    "original": Config(
        crop_to_edge=True,
        crop_chunk=32,
        center_mean=True,
        color_rescale=True,
        color_off_from=67.0,
        epochs=91.0,
        learning_rate_drops=(25.0, 51.0, 79.0),
        conv1_learning_rate_drops=(25.0, 51.0, 67.0),
        conv1_frozen_from=72.0,
        bias_learning_rate=0.02,
        decay_biases=False,
    ),
    # As Krizhevsky trained on 8 GPUs in 2014 (arXiv:1404.5997): 1,024 images a step, by the linear rule; over exactly
    # 90 epochs the rate falls to a 250th, at a quarter, a half and three quarters of them.
    "one_weird_trick": for_batch(
        Config(epochs=90.0, learning_rate_drops=(22.5, 45.0, 67.5), learning_rate_divisor=250 ** (1 / 3)), 1024
    ),
    # LARS (arXiv:1708.03888) with the numbers of a published solver file (Caffe, models/alexnet_bn) for AlexNet with
    # batch normalisation, which this network has not, at 8,192 images. Ours: a plateau in the place of its (1 - t/T)²,
    # and the biases' rate, by the sqrt rule.
    "lars": Config(
        batch_size=8192,
        epochs=100.0,
        learning_rate=10.0,
        trust_coefficient=0.001,
        warmup_epochs=5.0,
        bias_learning_rate=0.08,
        plateau_patience=5,
    ),
}
