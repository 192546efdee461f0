"""What a run reports: metrics.jsonl, TensorBoard, and the progress line."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec

from alexnet_jax.files import named_in_errors, write_whole
from alexnet_jax.options import InputError
from alexnet_jax.reading import Count, Fraction, Positive, read_lines
from alexnet_jax.shown import progress, say, shown

METRICS = "metrics.jsonl"
NAMED = 20  # bad lines, one by one
# What its lines have; other numbers need other names.
FIELDS = (
    "step", "epoch", "split", "loss", "top1_error", "top5_error", "nll", "examples", "learning_rate", "rate_scale",
    "images_per_second",
)  # fmt: skip
_PROGRESS = "step {n_fmt}/{total_fmt} |{bar:20}| {desc} | {remaining} left"


class Line(msgspec.Struct):
    """The form of a line of metrics.jsonl, as far as it is read. Numbers of one's own have any names and values."""

    step: Count
    epoch: Positive = 0.0
    split: str = ""
    loss: Positive | None = None
    top1_error: Fraction | None = None
    top5_error: Fraction | None = None
    nll: Positive | None = None
    images_per_second: Positive | None = None


class StepMetrics:
    """What the training steps gave, by name, any names; looked at a step late, so that the devices need not wait.

    sums: since the last line of the log, each with its number of steps. losses: not known to be finite yet.
    """

    def __init__(self, sums: Mapping[str, Sequence[float]] | None = None):
        self.sums = {name: (float(total), int(steps)) for name, (total, steps) in (sums or {}).items()}
        self.losses: list[float] = []
        self._pending: list[Mapping[str, Any]] = []

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Those of the step that has just been started; waits for the one before."""
        self._look(len(self._pending))
        self._pending.append(metrics)

    def settle(self) -> None:
        """Waits for all."""
        self._look(len(self._pending))

    def _look(self, steps: int) -> None:
        for metrics in jax.device_get(self._pending[:steps]):
            self.losses.append(float(metrics["loss"]))
            for name, value in metrics.items():
                total, before = self.sums.get(name, (0.0, 0))
                self.sums[name] = total + float(value), before + 1
        del self._pending[:steps]

    def taken(self) -> dict[str, float]:
        """Their means, for a line of the log; the sums begin anew."""
        found = {name: total / steps for name, (total, steps) in self.sums.items()}
        self.sums = {}
        return found


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
        _set_bad_lines_aside(self.file, steps)
        kept = [line for line in read_metrics(self.file) if line["step"] <= first_step]
        write_whole(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        self._tensorboard = _tensorboard().SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)
        self._bar = progress(steps, initial=first_step, bar_format=_PROGRESS, desc="compiling", dynamic_ncols=True)
        self.restart_clock(first_step)

    def restart_clock(self, step: int) -> None:
        """Leaves the time since the last line out of images/s: compilation, evaluation."""
        self._clock = (step, time.perf_counter())

    def advance(self) -> None:
        """One step has been started."""
        self._bar.update()

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """After a training step: its loss in nats, its error as a fraction, its learning rate where there is one, and
        whatever else was measured.
        """
        since, seconds = self._clock[0], time.perf_counter() - self._clock[1]
        rate = self._batch_size * (step - since) / seconds if step > since else None
        speed = f" | {rate:.1f} images/s" if rate else ""
        self._bar.set_description_str(
            f"epoch {step / self._steps_per_epoch:.2f} | loss {values['loss']:.3f} | "
            f"top-1 error {values['top1_error']:.1%}{speed}",
            refresh=False,
        )
        self._write(step, "train", {**values, "images_per_second": rate})
        self.restart_clock(step)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """The errors on the validation split after a step, and whatever else was measured there."""
        with self._bar.external_write_mode(file=sys.stdout):
            say(
                f"epoch {step / self._steps_per_epoch:.2f}, step {step}: "
                f"validation top-1 error {values['top1_error']:.1%}, top-5 {values['top5_error']:.1%}, "
                f"nll {values['nll']:.3f}"
            )
        self._write(step, "validation", values)
        self.restart_clock(step)

    def _write(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        line = {"step": step, "epoch": step / self._steps_per_epoch, "split": split, **values}
        with named_in_errors(self.file), self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            if value is not None:
                self._tensorboard.add_scalar(f"{split}/{shown(name)}", value, step)

    def flush(self) -> None:
        """Waits until all lines are on the disk: before the checkpoint that they go with."""
        with named_in_errors(self.file), self.file.open("a") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.close()
        self._tensorboard.close()


class SilentLog(RunLog):
    """Of the hosts that do not write."""

    def __init__(self) -> None:
        """Opens nothing."""

    def restart_clock(self, step: int) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that can be read, but for a last one that a kill has left half-written."""
    return [line for _, line in read_lines(file, Line) if not isinstance(line, InputError)]


def _set_bad_lines_aside(file: Path, steps: int) -> None:
    """Moves the lines that are damaged, or of no step of this run, into another file, and names them."""
    good: list[bytes] = []
    bad: list[bytes] = []
    for number, (line, said) in enumerate(read_lines(file, Line), start=1):
        if not isinstance(said, InputError) and said["step"] > steps:
            said = InputError(f"{file}: line {number} cannot be read (step: is {said['step']} of {steps})")
        if isinstance(said, InputError) and len(bad) < NAMED:
            say(f"warning: {said}; it is now in {file}.damaged", error=True)
        (bad if isinstance(said, InputError) else good).append(line + b"\n")
    if len(bad) > NAMED:
        say(f"warning: {file}: so are {len(bad) - NAMED:,} lines more", error=True)
    if bad:
        with file.with_name(f"{file.name}.damaged").open("ab") as aside:
            aside.write(b"".join(bad))
        write_whole(file, b"".join(good))


def _tensorboard() -> Any:
    """tensorboardX; without PyTorch, which it imports for seconds where there is one, for the name of a type."""
    known = "torch" in sys.modules  # also where somebody else has hidden it
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    try:
        import tensorboardX
    finally:
        if not known:
            del sys.modules["torch"]
    return tensorboardX
