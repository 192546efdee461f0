"""What an option is: a field of a dataclass that is also a flag; which values are possible, and how one that is not is
told. No JAX.
"""

import dataclasses
import math
import os
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from alexnet_jax.shown import shown

# Of numbers that have no bound of their own: what devices count with; and of what they multiply with, in float32.
LARGEST, LARGEST_FACTOR = 2**31 - 1, 3e38


class InputError(ValueError):
    """What the user gave cannot be used: one line that names the flag, file or layer."""

    def _render_traceback_(self) -> list[str]:  # what IPython shows instead of pages: in a notebook it is one line too
        return [f"error: {shown(self)}"]


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float = LARGEST,
    above: float | None = None,
    below: float | None = None,
    decides: bool = True,
) -> Any:
    """A field of a dataclass that is also a flag (see command.py): its help, and which numbers are possible.

    decides: whether it has a say in what is computed; else a run may be continued with another value.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds, "decides": decides})


def check_bounds(options: Any) -> None:
    """Raises InputError for the first among the fields of `options` that is not possible: a number out of its bounds,
    a text that no folder or file of this computer can have as its name.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        values = value if isinstance(value, tuple) else (value,)
        for one in values:
            problem = wrong_with_place(one) if isinstance(one, str) else _problem(one, **field.metadata["bounds"])
            if problem:
                raise InputError(f"--{field.name}={joined(values)}: must be {problem}")


def wrong_with_place(text: str) -> str | None:
    """What a text must be to name a folder or file of this computer; None where it is that."""
    scheme, is_address, rest = text.partition("://")
    if is_address:
        bucket = rest.split("/")[0]
        mount = f"gcsfuse {bucket} FOLDER" if scheme == "gs" else f"rclone mount REMOTE:{bucket} FOLDER"
        return f"a folder or file of this computer; a bucket can be mounted as one ({mount}), see docs/clouds.md"
    try:
        return "without the character 0, which no name of a file has" if b"\0" in os.fsencode(text) else None
    except UnicodeEncodeError:
        return "text in the characters of this computer's file names"


def joined(values: tuple) -> str:
    """Values as a flag has them."""
    return ",".join(map(short, values))


def short(value: Any) -> str:
    """A value of a flag, of any length, as a message has it."""
    try:
        text = str(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:100]}…"


def _problem(
    number: float, minimum: float | None, maximum: float, above: float | None, below: float | None
) -> str | None:
    if isinstance(number, float) and not math.isfinite(number):
        return "finite"
    if minimum is not None and number < minimum:
        return f"at least {minimum}"
    if above is not None and number <= above:
        return f"above {above}"
    if below is not None and number >= below:
        return f"below {below}"
    return f"at most {maximum}" if number > maximum else None


def one_of(names: Iterable[str]) -> str:
    """For help texts and messages: "a or b", "one of a, b, c"."""
    names = [*names]
    return f"one of {', '.join(names)}" if len(names) > 2 else " or ".join(names)


def check_choice(flag: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises InputError where a flag's value is none of the choices."""
    choices = [*choices]
    if value not in choices:
        raise InputError(f"--{flag}={value}: must be {one_of(map(str, choices))}")


def in_steps(interval: int | str, steps_per_epoch: Fraction) -> Fraction:
    """An interval, which is in steps, as 100, or in epochs, as "0.5epochs". Raises ValueError where it is none."""
    try:  # as a fraction, 1e100000000 would take hours
        number, epochs, rest = str(interval).partition("epoch")
        if rest not in ("", "s") or ("e" in number.lower() and not 1e-9 < float(number) <= LARGEST):
            raise ValueError
        steps = Fraction(number.strip()) * steps_per_epoch if epochs else Fraction(int(number))
    except (ValueError, ZeroDivisionError):
        raise ValueError("must be a number of steps, as 100, or of epochs, as 0.5epochs") from None
    if steps <= 0:
        raise ValueError("must be above 0")
    return steps
