"""What goes wrong with a checkpoint, in one line: orbax and TensorStore raise many types, and print pages."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alexnet_jax.options import InputError
from alexnet_jax.shown import short


class Damaged(Exception):
    """A checkpoint cannot be read."""


def report_lost_error(before: Callable[[Any], Any], lost: Any) -> None:
    """Where a write fails, orbax ends its loop, and TensorStore's threads then complain to it, each with a page."""
    if str(lost.exc_value) != "Event loop is closed":
        before(lost)


@contextlib.contextmanager
def as_damaged(place: Path) -> Iterator[None]:
    """Within it, any error is one of the damaged file at `place`."""
    try:
        yield
    except Exception as error:
        raise Damaged(f"{place.name}: {_reason(error)}") from error


@contextlib.contextmanager
def named_errors(folder: Path, what: str = "written") -> Iterator[None]:
    """Within it, any error is an InputError that names the folder of the checkpoints, and what could not be done."""
    try:
        yield
    except Exception as error:  # a full disk is a ValueError of TensorStore
        raise InputError(f"{folder}: the checkpoint cannot be {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return short((str(error) or type(error).__name__).split("\n")[0].split(": ")[-1])
