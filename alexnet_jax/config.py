"""Config: everything that decides the numbers of a run, flat and frozen; and the presets."""

import dataclasses
import math
from typing import Any


class InputError(ValueError):
    """What the user gave cannot be used: one line that names the flag, file or layer."""


def option(
    default: Any, help: str, *, minimum: float | None = None, above: float | None = None, below: float | None = None
) -> Any:
    """A field of a dataclass that is also a flag (see command.py): its help, and which numbers are possible."""
    bounds = {"minimum": minimum, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds})


def check_bounds(options: Any) -> None:
    """Raises InputError for the first number among the fields of `options` that is not possible."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        values = value if isinstance(value, tuple) else (value,)
        for number in values:
            problem = None if isinstance(number, str) else _problem(number, **field.metadata["bounds"])
            if problem:
                raise InputError(f"--{field.name}={','.join(map(str, values))}: must be {problem}")


def _problem(number: float, minimum: float | None, above: float | None, below: float | None) -> str | None:
    if not math.isfinite(number):
        return "finite"
    if minimum is not None and number < minimum:
        return f"at least {minimum}"
    if above is not None and number <= above:
        return f"above {above}"
    if below is not None and number >= below:
        return f"below {below}"
    return None


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. Each field is also a flag of `main`; its help text below is the flag's.

    Raises InputError for an impossible value.
    """

    architecture: str = option("demo", "table of layers, a name in model.ARCHITECTURES")
    dataset: str = option("shapes", "a folder that alexnet_jax.prepare wrote, or the built-in data set 'shapes'")
    num_classes: int = option(0, "outputs of the last layer; 0: as many as the data set has classes", minimum=0)
    crop_size: int = option(224, "side of the patch that the network sees, in pixels (§4.1)", minimum=1)
    color_scale: float = option(0.1, "standard deviation of the PCA colour's coefficients (§4.1); 0: off", minimum=0)
    batch_size: int = option(128, "images a step, over all devices together (§5)", minimum=1)
    epochs: float = option(90.0, "times through the training set; a fraction is possible", above=0)
    learning_rate: float = option(0.01, "the first learning rate (§5)", above=0)
    learning_rate_drops: tuple[float, ...] = option(
        (), "epochs at which the learning rate is divided by 10, comma-separated (§5)", above=0
    )
    momentum: float = option(0.9, "momentum (§5)", minimum=0, below=1)
    weight_decay: float = option(5e-4, "weight decay (§5)", minimum=0)
    seed: int = option(0, "of the initial weights, the order of images, the augmentation and dropout", minimum=0)
    log_every: int = option(10, "steps between lines in metrics.jsonl and TensorBoard", minimum=1)
    evaluate_every: int = option(0, "steps between evaluations; 0: once an epoch", minimum=0)
    checkpoint_every: int = option(0, "steps between checkpoints; 0: once an epoch", minimum=0)

    def __post_init__(self):
        check_bounds(self)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON keeps them (tuples as lists)."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


PRESETS: dict[str, Config] = {
    # Minutes on a laptop's CPU.
    "demo": Config(architecture="demo", batch_size=32, epochs=4.0, learning_rate_drops=(3.0,)),
    # §5. When to drop the rate was decided by hand in 2012; these are the epochs recorded for the paper's network.
    "paper": Config(architecture="paper", epochs=90.0, learning_rate_drops=(25.0, 51.0, 79.0)),
}
