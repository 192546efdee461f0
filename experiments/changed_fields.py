"""One field of a file, changed at random, for mutations.py: of a text of JSON, or of an .npz."""

import functools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

RAW = "@raw@"  # in the place of what JSON cannot say
KINDS: dict[str, Callable[[Any], Any]] = {
    "null": lambda value: None,
    "of another type": lambda value: [3] if isinstance(value, (str, dict)) else "three",
    "an object": lambda value: {"a": 1},
    "not a number": lambda value: float("nan"),
    "1e9": lambda value: 1e9,
    "10^9": lambda value: 10**9,
    "negative": lambda value: -3,
    "infinite": lambda value: (RAW, "1e400"),
    "of 5,000 digits": lambda value: (RAW, "1" * 5000),
    "deep": lambda value: (RAW, "[" * 100_000 + "]" * 100_000),
    "a bit deep": lambda value: (RAW, "[" * 30 + "]" * 30),
    "half a character": lambda value: (RAW, '"\\ud800"'),
    "the character 0": lambda value: f"{value}\0",
    "too short": lambda value: value[: len(value) // 2] if isinstance(value, (str, list)) else {},
    "too long": lambda value: value * 300 if isinstance(value, (str, list)) and value else [0] * 300,
}


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all that a text of JSON says."""
    if path:
        yield path
    for name, of in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from fields(of, (*path, name))


def changed_json(text: str, rng: random.Random) -> tuple[str, tuple[Any, ...], str]:
    """The text with one field changed; which, and how."""
    value = json.loads(text)
    path = rng.choice([*fields(value)])
    kind = rng.choice([*KINDS, "missing", "twice", "under a long name"])
    place = functools.reduce(lambda of, name: of[name], path[:-1], value)
    if kind == "missing":
        del place[path[-1]]
    elif kind == "under a long name" and isinstance(place, dict):
        place[path[-1] * 300] = place.pop(path[-1])
    elif kind == "twice" and isinstance(place, dict):
        name, before = path[-1], json.dumps(place[path[-1]])
        place[name] = RAW
        return json.dumps(value).replace(f'"{RAW}"', f"{before}, {json.dumps(name)}: {before}"), path, kind
    else:
        new = (KINDS.get(kind) or KINDS["null"])(place[path[-1]])
        raw = new[1] if isinstance(new, tuple) else None
        place[path[-1]] = RAW if raw else new
        if raw:
            return json.dumps(value).replace(f'"{RAW}"', raw), path, kind
    return json.dumps(value), path, kind


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "of another type": lambda values: values.astype("U9") if values.dtype.kind != "U" else np.zeros(values.shape),
    "objects": lambda values: values.astype(object),
    "complex": lambda values: np.zeros(values.shape, complex),
    "not a number": lambda values: np.full(values.shape, np.nan),
    "1e9": lambda values: np.full(values.shape, 1e9),
    "10^9": lambda values: np.full(values.shape, 10**9),
    "negative": lambda values: np.full(values.shape, -3),
    "in another order": lambda values: values[::-1] if values.ndim else np.array("another"),
    "too short": lambda values: values[: len(values) // 2] if values.ndim else np.array(""),
    "too long": lambda values: np.concatenate([values] * 2) if values.ndim else np.array(str(values) * 1000),
    "one dimension more": lambda values: values[None],
    "empty": lambda values: values[:0] if values.ndim else np.array(""),
}


def changed_arrays(file: Path, rng: random.Random) -> tuple[tuple[Any, ...], str]:
    with np.load(file) as opened:
        arrays = {name: opened[name] for name in opened.files}
    name, kind = rng.choice([*arrays]), rng.choice([*ARRAYS, "missing"])
    if kind == "missing":
        del arrays[name]
    else:
        arrays[name] = ARRAYS[kind](arrays[name])
    np.savez(file, **arrays)
    return (name,), kind
