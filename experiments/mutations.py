"""A folder that something else has written, or damaged, is used as it was, or refused in one line. Nothing else.

  python experiments/mutations.py --mutations=1000        10 minutes on two cores

A small run, its answers and its network in one file, and its data set. In a copy one field of one file is changed: it
is missing, null, of another type, under a long name, not a number, huge, negative, nested 100,000 deep, too short, too
long, there twice. Then all that reads the file does what it does for predict, evaluate, continue, weights and verify.
Expected: the same answers, parameters, images, classes and errors as before, and so exit code 0; or an InputError, exit
code 2, whose one line names the file and the field. Other ends there must be none.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kills import SMALL, picture  # first: it has settings for JAX

# isort: split
import jax
import numpy as np
import safetensors.numpy
from changed_fields import changed_arrays, changed_json
from record import save

from alexnet_jax import Config, InputError, fit, open_dataset, train, train_setup
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


# What each command does with a file: the text that comes out differs where its answer would.


def prediction(folder: Path) -> str:
    return answers(load(folder / "run"))


def prediction_of_file(folder: Path) -> str:
    return answers(load(folder / "network.safetensors"))


def answers(found: Trained) -> str:
    """What `predict` says of five pictures, and the network that says it."""
    pictures = np.stack([picture(label % 3, label) for label in range(5)])
    return f"{digest(found)} {np.asarray(found.probabilities(pictures)).tolist()}"


def digest(found: Trained) -> str:
    parts = [to_json(found.net.layers), found.config.crop_size, found.config.center_mean, found.config.precision]
    parts.append(dataclasses.asdict(found.preprocessing))
    text = json.dumps([*parts, found.class_names, str(found.net.dtype)])
    arrays = b"".join(np.asarray(of, np.float32).tobytes() for of in (found.mean_image, *jax.tree.leaves(found.params)))
    return hashlib.sha256(text.encode() + arrays).hexdigest()


def evaluation(folder: Path) -> str:
    found = load(folder / "run")
    data = found.open_dataset()
    told = ensemble.answers_of(found, data, "validation", views=1, batch_size=16)
    shape = [data.class_names, data.encoding, [(of, len(data.splits[of])) for of in data.splits]]
    return f"{digest(found)} {shape} {told.logits.tolist()} {told.labels.tolist()} {told.class_names} {told.data}"


def saved_answers(folder: Path) -> str:
    of_images = ensemble.outcomes(ensemble.averaged([ensemble.Answers.load(folder / "evaluation" / "answers.npz")]))
    return repr({name: values.tolist() for name, values in of_images.items()})


def continuation(folder: Path) -> str:
    with contextlib.ExitStack() as held:
        dataset, workdir = open_dataset(folder / "set"), folder / "run"
        run = train_setup.set_up(
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
    return answers(load(folder / "again.safetensors"))


def verification(folder: Path) -> str:
    return repr(sorted(manifest.verify(folder / "set").images.items()))


READERS: dict[str, list[Callable[[Path], str]]] = {
    "run/config.json": [prediction, evaluation, continuation, conversion],
    "run/init.json": [continuation],
    "run/result.json": [conversion],
    "run/data.npz": [prediction, evaluation, conversion],
    "run/metrics.jsonl": [continuation],
    "evaluation/answers.npz": [saved_answers],
    "set/manifest.json": [verification, evaluation, continuation],
    "set/statistics.npz": [verification, evaluation, continuation],
    "network.safetensors": [prediction_of_file],
}


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
            names += ["layer ", *named(SMALL), f"conv{len(SMALL) + 1}:"]
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
        jax.config.update("jax_compilation_cache_dir", f"{scratch}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
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
