"""A folder that something else has written, or damaged, is used as it was, or refused in one line. Nothing else.

  python experiments/mutations.py --mutations=1000        10 minutes on two cores

A small run, its answers and its network in one file, and its data set. In a copy one field of one file is changed: it
is missing, null, of another type, not a number, huge, negative, nested 100,000 deep, too short, too long, there twice.
Then all that reads the file does what it does for predict, evaluate, continue, weights and verify, up to where it
computes. Expected: the same parameters, images, classes and errors as before, and so exit code 0; or an InputError,
exit code 2, whose one line names the file and the field. Other ends there must be none.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kills import SMALL, picture  # first: it has settings for JAX

# isort: split
import jax
import numpy as np
import safetensors.numpy
from record import save

from alexnet_jax import Config, InputError, fit, open_dataset, train
from alexnet_jax.data import datasets, manifest, shards
from alexnet_jax.networks import ensemble, one_file
from alexnet_jax.networks.loading import load
from alexnet_jax.networks.network import Trained
from alexnet_jax.paper.table import named
from alexnet_jax.paper.written import to_json
from alexnet_jax.runs.checkpoint import Checkpoints
from alexnet_jax.runs.log import read_metrics
from alexnet_jax.weights import known_errors

CONFIG = Config(crop_size=32, batch_size=16, epochs=2.0, log_every=2, learning_rate=0.002, learning_rate_drops=(1.5,))
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
    "too short": lambda value: value[: len(value) // 2] if isinstance(value, (str, list)) else {},
    "too long": lambda value: value * 300 if isinstance(value, (str, list)) and value else [0] * 300,
}


class Case(NamedTuple):
    """What was changed: a file, the names that lead to the field, and how."""

    file: str
    field: tuple[Any, ...]
    kind: str


def make_good(folder: Path) -> None:
    """A run that began with the parameters of another one, all that it left, and its data set."""

    def item(split: int, index: int) -> shards.Item:
        name = f"{split}/{index}"
        return shards.Item(name, name, index % 3, functools.partial(picture, index % 3, 1000 * split + index))

    splits = {"train": [item(0, i) for i in range(50)], "validation": [item(1, i) for i in range(23)]}
    datasets.write(folder / "set", ["red", "green", "blue"], splits, size=40)
    dataset = open_dataset(folder / "set")
    fit(SMALL, dataset, CONFIG, folder / "origin", devices=jax.devices()[:1])
    fit(SMALL, dataset, config_of(folder), folder / "run", devices=jax.devices()[:1])
    ensemble.evaluate_networks([str(folder / "run")], folder / "evaluation")
    network = load(folder / "run")
    one_file.save(network, folder / "network.safetensors", known_errors(network))


def config_of(folder: Path) -> Config:
    return Config(**{**vars(CONFIG), "init_from": str(folder / "origin")})


# What each command does with a file, up to where it computes: the text that comes out differs where its answer would.


def network(folder: Path) -> str:
    return digest(load(folder / "run"))


def network_of_file(folder: Path) -> str:
    return digest(load(folder / "network.safetensors"))


def digest(found: Trained) -> str:
    parts = [to_json(found.net.layers), found.config.crop_size, found.config.center_mean, found.config.precision]
    parts.append(dataclasses.asdict(found.preprocessing))
    text = json.dumps([*parts, found.class_names, str(found.net.dtype)])
    arrays = b"".join(np.asarray(of, np.float32).tobytes() for of in (found.mean_image, *jax.tree.leaves(found.params)))
    return hashlib.sha256(text.encode() + arrays).hexdigest()


def evaluation(folder: Path) -> str:
    found = load(folder / "run")
    data = found.open_dataset()
    found.check_size(data)
    return f"{digest(found)} {data.class_names} {data.encoding} {[(of, len(data.splits[of])) for of in data.splits]}"


def saved_answers(folder: Path) -> str:
    of_images = ensemble.outcomes(ensemble.averaged([ensemble.Answers.load(folder / "evaluation" / "answers.npz")]))
    return repr({name: values.tolist() for name, values in of_images.items()})


def continuation(folder: Path) -> str:
    with contextlib.ExitStack() as held:
        dataset, workdir = open_dataset(folder / "set"), folder / "run"
        run = train._set_up(
            SMALL, dataset, config_of(folder), workdir, None, None, train.Metrics(), jax.devices()[:1], held
        )
        checkpoints = Checkpoints(workdir / "checkpoints")
        held.callback(checkpoints.close)
        state, step, seen, lowest = train._start(run, checkpoints, to_json(SMALL))
        train._log(run, step).close()
        arrays = b"".join(np.asarray(of).tobytes() for of in jax.tree.leaves(state))
        return f"{step} {seen.sums} {lowest} {run.origin.taken} {hashlib.sha256(arrays).hexdigest()}"


def conversion(folder: Path) -> str:
    found = load(folder / "run")
    one_file.save(found, folder / "again.safetensors", known_errors(found))
    return digest(load(folder / "again.safetensors"))


def verification(folder: Path) -> str:
    return repr(sorted(manifest.verify(folder / "set").images.items()))


READERS: dict[str, list[Callable[[Path], str]]] = {
    "run/config.json": [network, evaluation, continuation, conversion],
    "run/init.json": [continuation],
    "run/result.json": [conversion],
    "run/data.npz": [network, evaluation, conversion],
    "run/metrics.jsonl": [continuation],
    "evaluation/answers.npz": [saved_answers],
    "set/manifest.json": [verification, evaluation, continuation],
    "set/statistics.npz": [verification, evaluation, continuation],
    "network.safetensors": [network_of_file],
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
    kind = rng.choice([*KINDS, "missing", "twice"])
    place = functools.reduce(lambda of, name: of[name], path[:-1], value)
    if kind == "missing":
        del place[path[-1]]
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


def change(folder: Path, rng: random.Random) -> Case:
    """One field of one file of the folder."""
    name = rng.choice([*READERS])
    file = folder / name
    if file.suffix == ".npz":
        path, kind = changed_arrays(file, rng)
    elif file.suffix == ".safetensors":
        tensors, metadata = one_file.read_safetensors(file)
        part = rng.choice(["card", "layers", "checksums"])
        text, path, kind = changed_json(metadata[part], rng)
        file.write_bytes(safetensors.numpy.save(tensors, {**metadata, part: text}))
        path = (part, *path)
    elif file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        number = rng.randrange(len(lines))
        lines[number], path, kind = changed_json(lines[number], rng)
        file.write_text("\n".join([*lines, ""]))
    else:
        text, path, kind = changed_json(file.read_text(), rng)
        file.write_text(text)
    return Case(name, path, kind)


def wrong_with(case: Case, reader: Callable[[Path], str], folder: Path, expected: str) -> str:
    """Nothing where it ends as it should."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            found = reader(folder)
    except InputError as error:
        line = " ".join(str(error).split())
        if "\n" in str(error) or len(line) > 2000:
            return f"a message of {len(str(error))} characters"
        names = [str(of) for of in case.field if not isinstance(of, int)]
        if "layers" in names:  # which have names of their own
            names += ["layer ", *named(SMALL)]
        if case.file.startswith("set/"):  # with a digest of the whole file
            names += ["is not as it was written"]
        # What config.json says of the data set can be said anew with a flag, which is named instead.
        files = [Path(case.file).name, *(["--dataset="] if "dataset" in names else [])]
        is_named = any(of in line for of in files) and any(of in line for of in names)
        return "" if is_named else f"{line[:300]}: does not name the file and the field"
    except BaseException as error:
        return f"{type(error).__name__}: {''.join(traceback.format_exception(error)[-2:])[-500:]}"
    if case.file.endswith(".jsonl"):
        aside = (folder / f"{case.file}.damaged").exists()
        if aside and f"{folder / case.file}: line " not in told.getvalue():
            return "a line was set aside and not named"
    return "" if found == expected else "another answer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_log", action="store_true")
    arguments = parser.parse_args()
    rng, began, failures = random.Random(arguments.seed), time.monotonic(), []
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        folder, good = Path(scratch, "now"), Path(scratch, "good")
        make_good(folder)  # runs and data sets name their places
        shutil.copytree(folder, good)
        readers = {reader for of in READERS.values() for reader in of}
        expected = {reader: reader(folder) for reader in readers}
        lines = read_metrics(folder / "run" / "metrics.jsonl")
        for number in range(arguments.mutations):
            shutil.rmtree(folder)
            shutil.copytree(good, folder)
            case = change(folder, rng)
            counts[case.file] += 1
            for reader in READERS[case.file]:
                if problem := wrong_with(case, reader, folder, expected[reader]):
                    failures.append([*case[:1], ".".join(map(str, case.field)), case.kind, reader.__name__, problem])
                    print(number, *failures[-1], flush=True)
            kept = read_metrics(folder / "run" / "metrics.jsonl")
            if case.file.endswith(".jsonl") and len([of for of in kept if of in lines]) < len(lines) - 1:
                failures.append([*case[:1], "", case.kind, "continuation", "more than one line is gone"])
    print(f"{arguments.mutations} mutations of {len(counts)} files: {len(failures)} ends that must not be")
    if not arguments.no_log:
        minutes = round((time.monotonic() - began) / 60, 1)
        save("mutations", mutations=arguments.mutations, of=dict(counts), failures=failures, minutes=minutes)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
