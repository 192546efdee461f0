"""A run's folder: whose it is, and what the run tells in it: metrics.jsonl, TensorBoard; and the progress line."""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
from tqdm import tqdm

from alexnet_jax.config import Config, InputError
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.paper.evaluate import Errors

METRICS, FACTS, ORIGIN = "metrics.jsonl", "data.npz", "init.json"
_PROGRESS = "step {n_fmt}/{total_fmt} |{bar:20}| {desc} | {remaining} left"


def claim_workdir(workdir: Path, config: Config, fingerprint: str, *, exists: bool = False) -> None:
    """Writes config.json into a new run's folder; in an existing one, checks that the run is the same.

    The same means: all fields of the config that decide what is computed, but that the data set may lie elsewhere as
    long as its `fingerprint` is the same.

    Raises InputError where the folder cannot be used, or holds another run: it names the fields; or where it `exists`
    by another host's account, and is not here.
    """
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if exists and not file.exists():
            raise InputError(f"--workdir={workdir}: is not on a disk that all processes see")
        if not file.exists():
            write_whole(
                file, json.dumps({"config": config.to_json(), "data": fingerprint, **versions()}, indent=2) + "\n"
            )
            return
        saved = json.loads(file.read_text())
        # What an older version did not know yet was as it is by default.
        before, now = {**Config().to_json(), **saved["config"]}, config.to_json()
        if saved["data"] == fingerprint:
            before["dataset"] = now["dataset"]
        elif before["dataset"] == now["dataset"]:
            before["dataset"] = f"{now['dataset']} with other images"
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--workdir={workdir}: cannot be used ({error})") from error
    idle = {field.name for field in dataclasses.fields(config) if not field.metadata["decides"]}
    differing = [
        f"{name} was {before.get(name, 'unset')}, is {now.get(name, 'unset')}"
        for name in sorted({*before, *now} - idle)
        if before.get(name, "unset") != now.get(name, "unset")
    ]
    if differing:
        raise InputError(
            f"--workdir={workdir}: holds a run with other settings ({'; '.join(differing)}); "
            "give the old settings or another folder"
        )


def keep_facts(workdir: Path, dataset: Dataset) -> None:
    """What the network needs to know of its data set to be used without it: data.npz, in a run's folder."""
    if not (workdir / FACTS).exists():
        content = io.BytesIO()
        np.savez(content, class_names=np.array(dataset.class_names), mean_image=dataset.statistics.mean_image)
        write_whole(workdir / FACTS, content.getvalue())


def taken_over(workdir: Path) -> list[str]:
    """The parameters that a run has taken from another one. Raises InputError where init.json is damaged."""
    file = workdir / ORIGIN
    try:
        return json.loads(file.read_text())["taken"] if file.exists() else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error


class RunLog:
    """Writes a run's progress to the terminal and, line by line, into its folder.

    Lines of metrics.jsonl: {"step", "epoch", "split": "train", "loss" (nats, mean over the steps since the line
    before), "top1_error" (of the same, augmented and with dropout), "learning_rate" (of the last of them),
    "images_per_second"} and {"step", "epoch", "split": "validation", "top1_error", "top5_error", "nll"}.

    A run that continues from `first_step` supersedes the lines after it.
    """

    def __init__(self, workdir: Path, *, first_step: int, steps: int, steps_per_epoch: float, batch_size: int):
        self.file = workdir / METRICS
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        kept = [line for line in read_metrics(self.file) if line["step"] <= first_step]
        write_whole(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            bar_format=_PROGRESS,
            desc="compiling",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 15,
        )
        self.restart_clock(first_step)

    def restart_clock(self, step: int) -> None:
        """Leaves the time since the last line out of images/s: compilation, evaluation."""
        self._clock = (step, time.perf_counter())

    def advance(self) -> None:
        """One step has been started."""
        self._bar.update()

    def train(self, step: int, *, loss: float, top1_error: float, learning_rate: float) -> None:
        """A training step: its loss in nats, and its error as a fraction."""
        since, seconds = self._clock[0], time.perf_counter() - self._clock[1]
        rate = self._batch_size * (step - since) / seconds if step > since else None
        speed = f" | {rate:.1f} images/s" if rate else ""
        self._bar.set_description_str(
            f"epoch {step / self._steps_per_epoch:.2f} | loss {loss:.3f} | top-1 error {top1_error:.1%}{speed}",
            refresh=False,
        )
        self._write(
            step, "train", loss=loss, top1_error=top1_error, learning_rate=learning_rate, images_per_second=rate
        )
        self.restart_clock(step)

    def validation(self, step: int, errors: Errors) -> None:
        """The errors on the validation split after a step."""
        self._bar.write(
            f"epoch {step / self._steps_per_epoch:.2f}, step {step}: validation top-1 error {errors.top1_error:.1%}, "
            f"top-5 {errors.top5_error:.1%}, nll {errors.nll:.3f}",
            file=sys.stdout,
        )
        sys.stdout.flush()
        self._write(step, "validation", top1_error=errors.top1_error, top5_error=errors.top5_error, nll=errors.nll)

    def _write(self, step: int, split: str, **values: float | None) -> None:
        line = {"step": step, "epoch": step / self._steps_per_epoch, "split": split, **values}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            if value is not None:
                self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """Waits until all lines are on the disk: before the checkpoint that they go with."""
        with self.file.open("a") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.close()
        self._tensorboard.close()


class NoLog:
    """A RunLog of the hosts that do not write."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, up to one that a kill or a power cut left half-written."""
    found: list[dict[str, Any]] = []
    if file.exists():
        with contextlib.suppress(ValueError):
            found.extend(json.loads(line) for line in file.read_text(errors="replace").split("\n")[:-1])
    return found


def versions() -> dict[str, Any]:
    """Which software this is: versions, and the commit where the package runs from a git checkout."""
    packages = ("alexnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets")
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = "not installed"
    return {"versions": found, "commit": _commit()}


def _commit() -> str | None:
    """The package's commit, with "-dirty" where files were changed since; None where it is no checkout of its own."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes a file so that a kill or a power cut leaves the old one or the new one, never half of it."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as written:
        written.write(content if isinstance(content, bytes) else content.encode())
        written.flush()
        os.fsync(written.fileno())
    partial.replace(file)
