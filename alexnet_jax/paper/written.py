"""A table written down, read again, and compared: two networks are the same exactly when their written forms agree."""

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alexnet_jax.paper.layers import STEPS
from alexnet_jax.paper.table import NAMES, Conv, Dense, Layers, Local, Step, check, named

MOST = 2000  # layers and steps of one network
LARGEST_INT, LARGEST_FLOAT = 2**63 - 1, float(np.finfo(np.float32).max)  # what other programs read, and devices keep
KINDS = {"conv": Conv, "local": Local, "dense": Dense}
Written = list[dict[str, Any]]


def to_json(layers: Layers) -> Written:
    """One dictionary a layer: its kind and fields, and under "then" each step's name with all its keywords.

    A step that is not in `layers.STEPS` is written by its import path. Raises ValueError, naming the layer, for one
    that has none (a lambda), a keyword that JSON does not keep, and whatever else `from_json` would not read.
    """
    rows = [
        {
            "kind": next(kind for kind, of in KINDS.items() if type(layer) is of),
            **{field: _plain(getattr(layer, field), f"{name} {field}") for field in _fields(type(layer))},
            "then": [_step_to_json(Step.of(step), name) for step in layer.then],
        }
        for name, layer in named(layers).items()
    ]
    from_json(rows, own_steps(layers))
    return rows


def _fields(kind: type) -> list[str]:
    """Those that are written, but for the steps."""
    return [of.name for of in dataclasses.fields(kind) if of.name not in ("then", "operation", "add_bias")]


def _step_to_json(step: Step, layer: str) -> dict[str, Any]:
    if "<" in step.name:
        raise ValueError(f"{layer}: the step {step.name} has no name of its own; define it at the top of a module")
    keywords = {key: _plain(value, f"{layer}:{step.short_name} {key}") for key, value in step.keywords}
    return {"step": step.name, **keywords}


def _plain(value: Any, what: str) -> Any:
    if isinstance(value, tuple):
        return [_plain(of, what) for of in value]
    if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:  # nor what is no number
        raise ValueError(f"{what} is {value}; it must be a finite number of 32 bits")
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise ValueError(f"{what} is {_short(value)}; it must be a whole number of 64 bits")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"{what} is {_short(value)}; a number, text, or a tuple of these can be written")


def from_json(rows: Any, steps: Mapping[str, Callable] | None = None) -> Layers:
    """The inverse of `to_json`. Nothing that is written is imported.

    steps: those of one's own, by their import path or its last part. Raises ValueError, naming the layer.
    """
    layers = tuple(_layer(row, f"layer {number}", steps or {}) for number, row in enumerate(as_written(rows), start=1))
    check(layers)
    return layers


def as_written(rows: Any) -> Written:
    """The same, where it is the written form of some table, whose steps and fields need not be known here. Raises
    ValueError, naming the layer.
    """
    if not isinstance(rows, list) or not rows:
        raise ValueError("a network is written as a list of layers")
    parts = len(rows)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or row.get("kind") not in [*KINDS]:  # a list, since a kind may be anything
            raise ValueError(f"layer {number}: its kind must be one of {', '.join(KINDS)}")
        then = row.get("then", [])
        if not isinstance(then, list):
            raise ValueError(f"layer {number}: then is {_short(then)}; it must be a list of steps")
        for step in then:
            if not isinstance(step, dict) or not isinstance(step.get("step"), str):
                raise ValueError(f"layer {number}: then: {_short(step)} is no step")
        parts += len(then)
    if parts > MOST:  # each takes milliseconds to look at
        raise ValueError(f"layers: they have {parts:,} layers and steps; {MOST:,} are the most")
    return rows


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _layer(row: dict[str, Any], name: str, steps: Mapping[str, Callable]) -> Conv | Local | Dense:
    kind = KINDS[row["kind"]]
    types = {of.name: of for of in dataclasses.fields(kind) if of.name in _fields(kind)}
    values: dict[str, Any] = {}
    for field, value in row.items():
        if field in ("kind", "then"):
            continue
        if field not in types:
            raise ValueError(f"{name}: a {row['kind']} layer has no {_text(field)}")
        values[field] = _number(value, types[field], f"{name} {field}")
    missing = [of.name for of in types.values() if of.default is dataclasses.MISSING and of.name not in values]
    if missing:
        raise ValueError(f"{name}: {missing[0]} is missing")
    return kind(**values, then=tuple(_step(of, name, steps) for of in row.get("then", [])))


def _number(value: Any, field: dataclasses.Field, what: str) -> Any:
    if field.type is float:
        if type(value) in (int, float) and abs(value) <= LARGEST_FLOAT:
            return float(value)
        raise ValueError(f"{what} is {_short(value)}; it must be a finite number of 32 bits")
    if field.name == "padding" and isinstance(value, list) and [*map(type, value)] == [int, int]:
        return tuple(_plain(of, what) for of in value)
    if type(value) is int:
        return _plain(value, what)
    raise ValueError(f"{what} is {_short(value)}; it must be a whole number")


def _step(row: dict[str, Any], layer: str, steps: Mapping[str, Callable]) -> Step:
    name = row["step"]
    last = name.rpartition(".")[2]
    function = STEPS.get(name) or steps.get(name) or (steps.get(last) if "." in name else None)
    if function is None:
        given = f"load(…, steps={{'{_text(last)}': …}})"
        raise ValueError(f"{layer}: its step {_text(name)} is not known here; in code of one's own, give {given}")
    types = getattr(function, "__annotations__", {})
    keywords = {
        key: _value(of, types.get(key), f"{layer}:{name} {_text(key)}") for key, of in row.items() if key != "step"
    }
    try:
        return Step.of(functools.partial(function, **keywords))
    except ValueError as error:
        raise ValueError(f"{layer}: {error}") from error


def _value(value: Any, kind: Any, what: str) -> Any:
    """A keyword of a step, of the type that its function says, where it says int, float or bool."""
    if kind in (int, float, bool) and type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{what} is {_short(value)}; it must be of type {kind.__name__}")
    if isinstance(value, list):
        return tuple(_value(of, None, what) for of in value)
    return _plain(value, what)


def own_steps(layers: Layers) -> dict[str, Callable]:
    """The steps of a table that are not in `layers.STEPS`, by name, for `from_json`."""
    steps = [Step.of(step) for layer in layers for step in layer.then]
    return {step.name: step.function for step in steps if step.name not in STEPS}


def differences(was: Written, now: Written) -> list[str]:
    """What differs between two written forms, by layer and field: "conv1:lrn alpha was 0.0001, is 0.001"."""
    names = [[f"{NAMES[KINDS[row['kind']]]}{number}" for number, row in enumerate(of, start=1)] for of in (was, now)]
    if names[0] != names[1]:
        were, are = (", ".join(of) if len(of) <= 20 else f"{len(of):,}, {', '.join(of[:3])}, …" for of in names)
        return [f"the layers were {were}, are {are}"]
    found = []
    for name, before, after in zip(names[0], was, now, strict=True):
        found += _changed(name, {**before, "then": ""}, {**after, "then": ""})
        steps = [[step["step"] for step in row.get("then", [])] for row in (before, after)]
        if steps[0] != steps[1]:
            were, are = (", ".join(map(_text, of[:20])) + ", …" * (len(of) > 20) or "none" for of in steps)
            found.append(f"{name} steps were {were}, are {are}")
            continue
        for one, other in zip(before.get("then", []), after.get("then", []), strict=True):
            found += _changed(f"{name}:{one['step'].rpartition('.')[2]}", one, other)
    return found


def listed(differing: list[str], most: int = 5) -> str:
    """In a line: the first of them, and how many more there are."""
    more = [f"and {len(differing) - most} more"] if len(differing) > most else []
    return "; ".join([*differing[:most], *more])


def _text(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 80 else _short(value)


def _changed(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {_text(field)} was {_text(before.get(field, 'unset'))}, is {_text(after.get(field, 'unset'))}"
        for field in {**before, **after}
        if before.get(field, "unset") != after.get(field, "unset")
    ]
