"""Nothing is lost: a run that is killed again and again ends with the numbers of one that was not.

  python experiments/kills.py --kills=200                     9 minutes on two cores
  python experiments/kills.py --kills=200 --scratch=DIR       the same, and continues where it was stopped itself

A small network on drawn pictures, in a process of its own for each life, killed (SIGKILL) in one phase after the other:
while it starts, compiles, writes the first line of its log, trains, saves a checkpoint, renames it, removes an old one,
evaluates; and at the end of the run while it draws the figures and writes result.json. The next life continues in the
same workdir. So with each of four settings: the paper's plateau, bfloat16, images kept on the device, four devices.
Expected: parameters, momentum, step and schedule, the lines of metrics.jsonl, result.json (but for images/s), and all
other files that a run leaves are those of the run that was left alone, bit for bit; and no checkpoint is damaged.
"""

import argparse
import collections
import dataclasses
import functools
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from record import save

import alexnet_jax.train as training
from alexnet_jax import (
    AlexNet,
    Config,
    Conv,
    Dense,
    dropout,
    init_state,
    lrn,
    open_dataset,
    pool,
    relu,
    to_json,
    train_setup,
)  # fmt: skip
from alexnet_jax.data import datasets, shards
from alexnet_jax.paper.optim import configured_rule
from alexnet_jax.runs import report
from alexnet_jax.runs.checkpoint import Checkpoints
from alexnet_jax.runs.log import METRICS, RunLog, read_metrics

SMALL = (
    Conv(8, 5, stride=2, padding=(0, 1), std=0.02, then=(relu, lrn, pool)),
    Conv(8, 3, padding=1, groups=2, std=0.1, then=(relu, pool)),
    Dense(16, std=0.1, then=(relu, dropout)),
    Dense(3, std=0.1),
)
PLATEAU = Config(
    crop_size=32, batch_size=16, log_every=1, learning_rate=0.002,
    plateau_patience=3, evaluate_every="1.5epochs", checkpoint_every=4,
)  # fmt: skip
DROPS = dataclasses.replace(PLATEAU, plateau_patience=0, learning_rate_drops=(5.0, 9.0))
SETTINGS = {
    "plateau": (PLATEAU, 1),
    "bfloat16": (dataclasses.replace(DROPS, precision="bfloat16"), 1),
    "cache=device": (dataclasses.replace(DROPS, cache="device"), 1),
    "4 devices": (DROPS, 4),
}
# Where each phase begins: a function of the module or class; how often it may come before the kill, and how many
# seconds may pass then.
PHASES: dict[str, tuple[Any, str, int, float]] = {
    "start": (training, "fit", 1, 0.8),
    "compile": (training, "_loop", 1, 3.0),
    "first line": (RunLog, "_write", 1, 0.002),
    "training": (RunLog, "advance", 12, 0.02),
    "checkpoint": (Checkpoints, "save", 3, 0.1),
    "rename": (os, "rename", 3, 0.001),
    "removal": (Checkpoints, "_remove_old", 4, 0.001),
    "evaluation": (train_setup, "evaluate", 2, 0.03),
    "figures": (report.figures, "save_curves", 1, 0.4),
    "result.json": (report, "write_whole", 1, 0.002),
}
AT_THE_END = ("figures", "result.json")


def picture(label: int, seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 200, (40, 40, 3), dtype=np.uint8)
    pixels[..., label] += 40
    return pixels


def draw_dataset(path: Path) -> None:
    def item(split: int, index: int) -> shards.Item:
        name = f"{split}/{index}"
        return shards.Item(name, name, index % 3, functools.partial(picture, index % 3, 1000 * split + index))

    splits = {"train": [item(0, i) for i in range(50)], "validation": [item(1, i) for i in range(23)]}
    datasets.write(path, ["red", "green", "blue"], splits, size=40)


class Lives:
    """Processes that work in `scratch`, forked, since importing takes longer than a life. JAX has started nothing here.

    Their programs are compiled once, so that a life begins within a second or two.
    """

    def __init__(self, scratch: Path):
        self.scratch, self.output = scratch, scratch / "output.txt"

    def start(self, task: Callable[[], Any], *, devices: int = 1, compiled: str = "compiled") -> int:
        if process := os.fork():
            return process
        sys.stdout = sys.stderr = self.output.open("a", buffering=1)
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        jax.config.update("jax_compilation_cache_dir", str(self.scratch / compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        try:
            task()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def whole(self, task: Callable[[], Any], *, devices: int = 1) -> None:
        """One that is left alone."""
        self.expect(self.start(task, devices=devices), 0)

    def expect(self, process: int, *wanted: int) -> int:
        """Waits for its end, and returns the status; negative: by a signal."""
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status not in wanted:
            sys.exit(f"a life ended with {status}, not {wanted}:\n{self.output.read_text()[-3000:]}")
        return status

    def killed(self, task: Callable[[], Any], phase: str, rng: random.Random, *, devices: int) -> bool:
        """One that is killed in a phase, at a moment by chance; False where it was at its end before."""
        owner, name, times, seconds = PHASES[phase]
        told, tell = os.pipe()

        def telling() -> None:
            function = getattr(owner, name)

            def telling_function(*arguments: Any, **others: Any) -> Any:
                if owner is not os or "orbax-checkpoint-tmp" in str(arguments[0]):
                    os.write(tell, b".")
                return function(*arguments, **others)

            setattr(owner, name, telling_function)
            task()

        compiled = f"compiled-{rng.random()}" if phase == "compile" else "compiled"  # there from the beginning
        process = self.start(telling, devices=devices, compiled=compiled)
        os.close(tell)
        for _ in range(rng.randint(1, times)):
            select.select([told], [], [])
            if not os.read(told, 1):
                self.expect(process, -signal.SIGKILL)  # it has ended by itself
        time.sleep(rng.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        os.close(told)
        return self.expect(process, -signal.SIGKILL, *([0] if phase in AT_THE_END else [])) != 0


def write_state(config: Config, workdir: Path, file: Path) -> None:
    """All arrays of the last checkpoint."""
    like = init_state(AlexNet(SMALL), configured_rule(config, 50 / 16), image_size=32)
    found = Checkpoints(workdir / "checkpoints").restore_latest(like, to_json(SMALL))
    assert found
    np.savez(file, *jax.tree.leaves(found[0]))


def without_speed(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "images_per_second"}


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [without_speed(line) for line in read_metrics(workdir / METRICS)]


def others(workdir: Path) -> dict[str, Any]:
    """What else a run leaves, by name, and its content."""
    found = {file.relative_to(workdir).as_posix(): file for file in workdir.rglob("*") if file.is_file()}
    kept = {name: file for name, file in found.items() if not name.startswith(("checkpoints/", "tensorboard/", "."))}
    content: dict[str, Any] = {name: file.read_bytes() for name, file in kept.items() if name != METRICS}
    return content | {"result.json": without_speed(json.loads(content["result.json"]))}


def half_written(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def phase_of(kill: int, kills: int) -> str:
    """Of one of so many kills of a run: the last fifth comes at its end."""
    in_the_run = [phase for phase in PHASES if phase not in AT_THE_END]
    left = kills - kill
    return AT_THE_END[left % 2] if left <= kills // 5 else in_the_run[kill % len(in_the_run)]


def kill_a_run(lives: Lives, name: str, kills: int, seed: int) -> dict[str, Any]:
    """A run of these settings that is left alone, another that is killed so often, and what they have in common."""
    config, devices = SETTINGS[name]
    config = dataclasses.replace(config, epochs=10.0 + 4 * kills)
    folder = lives.scratch / name
    whole, workdir, done = folder / "whole", folder / "killed", folder / "kills.jsonl"
    folder.mkdir(exist_ok=True)
    dataset = lives.scratch / "set"

    def run(workdir: Path) -> None:
        training.fit(SMALL, open_dataset(str(dataset)), config, workdir)

    if not (whole / "result.json").exists():
        lives.whole(functools.partial(run, whole), devices=devices)
    done.touch()
    for kill in range(len(done.read_text().splitlines()), kills):
        phase, rng = phase_of(kill, kills), random.Random(f"{seed}, {name}, {kill}")
        while not lives.killed(functools.partial(run, workdir), phase, rng, devices=devices):
            pass
        found = {"phase": phase, "step": (lines(workdir) or [{"step": 0}])[-1]["step"],
                 "in_a_checkpoint": half_written(workdir)}  # fmt: skip
        with done.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{name}: kill {kill + 1}, {', '.join(f'{of} {value}' for of, value in found.items())}", flush=True)
    lives.whole(functools.partial(run, workdir), devices=devices)

    for of in (whole, workdir):
        lives.whole(functools.partial(write_state, config, of, folder / f"{of.name}.npz"))
    states = [np.load(folder / f"{of.name}.npz") for of in (whole, workdir)]
    told = [json.loads(line) for line in done.read_text().splitlines()]
    return {
        "settings": name,
        "kills": len(told),
        "by_phase": dict(collections.Counter(kill["phase"] for kill in told)),
        "at_steps": [kill["step"] for kill in told],
        "in_a_checkpoint": sum(kill["in_a_checkpoint"] for kill in told),
        "torn": len(list((workdir / "checkpoints").glob("*.damaged*"))),
        "steps": lines(whole)[-1]["step"],
        "state_equal": all(np.array_equal(states[0][array], states[1][array]) for array in states[0]),
        "lines_equal": lines(whole) == lines(workdir),
        "files_equal": others(whole) == others(workdir),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--no_log", action="store_true")
    arguments = parser.parse_args()
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        scratch = arguments.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        lives = Lives(scratch)
        if not (scratch / "set").exists():
            lives.whole(functools.partial(draw_dataset, scratch / "set"))
        began = min(began, (scratch / "set").stat().st_mtime)
        share = arguments.kills // len(SETTINGS)
        runs = [kill_a_run(lives, name, share, arguments.seed) for name in SETTINGS]
    for run in runs:
        print({name: value for name, value in run.items() if name != "at_steps"})
    kills = sum(run["kills"] for run in runs)
    good = all(run["state_equal"] and run["lines_equal"] and run["files_equal"] and not run["torn"] for run in runs)
    print(f"{kills} kills of {len(runs)} runs: {'all equal to those left alone' if good else 'DIFFERENT'}")
    if not arguments.no_log:
        save("kills", kills=kills, runs=runs, minutes=round((time.time() - began) / 60, 1))
    if not good:
        sys.exit("not the same")


if __name__ == "__main__":
    main()
