"""Nothing is lost: a run that is killed again and again ends with the numbers of one that was not.

  python experiments/kills.py --kills=100        5 minutes on two cores

A small network on drawn pictures, in a process of its own for each life, killed (SIGKILL) at a random moment: while it
starts, trains or evaluates; and every fourth one, on purpose, while a checkpoint is being written. The next life
continues in the same workdir. Expected: parameters, momentum, step and schedule, and the lines of metrics.jsonl (but
for images/s) are those of the run that was left alone, bit for bit.
"""

import argparse
import functools
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
SCRATCH = tempfile.TemporaryDirectory(prefix="kills-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{SCRATCH.name}/compiled"  # so that a life begins within a second or two
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import numpy as np
from record import save

from alexnet_jax import AlexNet, Config, Conv, Dense, dropout, fit, init_state, lrn, open_dataset, pool, relu, to_json
from alexnet_jax.data import datasets, shards
from alexnet_jax.paper.optim import configured_rule
from alexnet_jax.runs.checkpoint import Checkpoints
from alexnet_jax.runs.log import METRICS, read_metrics

SMALL = (
    Conv(8, 5, stride=2, padding=(0, 1), std=0.02, then=(relu, lrn, pool)),
    Conv(8, 3, padding=1, groups=2, std=0.1, then=(relu, pool)),
    Dense(16, std=0.1, then=(relu, dropout)),
    Dense(3, std=0.1),
)
DATASET = f"{SCRATCH.name}/set"
CONFIG = Config(
    crop_size=32, batch_size=16, epochs=120.0, log_every=1,
    learning_rate=0.002, plateau_patience=3, evaluate_every="1.5epochs", checkpoint_every=4,
)  # fmt: skip


def picture(label: int, seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 200, (40, 40, 3), dtype=np.uint8)
    pixels[..., label] += 40
    return pixels


def draw_dataset() -> None:
    def item(split: int, index: int) -> shards.Item:
        name = f"{split}/{index}"
        return shards.Item(name, name, index % 3, functools.partial(picture, index % 3, 1000 * split + index))

    splits = {"train": [item(0, i) for i in range(50)], "validation": [item(1, i) for i in range(23)]}
    datasets.write(Path(DATASET), ["red", "green", "blue"], splits, size=40)


def live(task: Callable[[], Any]) -> int:
    """A process that does it: forked, since importing takes longer than a life. JAX has started nothing here."""
    if process := os.fork():
        return process
    sys.stdout = sys.stderr = open(f"{SCRATCH.name}/output.txt", "a", buffering=1)  # noqa: SIM115
    try:
        task()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(process: int) -> int:
    """Its exit status; negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def finished(process: int) -> None:
    if ended(process):
        sys.exit(f"a life failed:\n{Path(SCRATCH.name, 'output.txt').read_text()[-3000:]}")


def write_state(workdir: Path, file: Path) -> None:
    """All arrays of the last checkpoint."""
    like = init_state(AlexNet(SMALL), configured_rule(CONFIG, 50 / 16), image_size=32)
    found = Checkpoints(workdir / "checkpoints").restore_latest(like, to_json(SMALL))
    assert found
    np.savez(file, *jax.tree.leaves(found[0]))


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in read_metrics(workdir / METRICS)
    ]


def half_written(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_log", action="store_true")
    arguments = parser.parse_args()
    rng, scratch, began = random.Random(arguments.seed), Path(SCRATCH.name), time.monotonic()
    finished(live(draw_dataset))

    def run(name: str) -> None:
        fit(SMALL, open_dataset(DATASET), CONFIG, scratch / name)

    finished(live(functools.partial(run, "warm")))  # compiles
    start = time.monotonic()
    process = live(functools.partial(run, "whole"))
    while not lines(scratch / "whole"):
        time.sleep(0.01)
    to_train, start = time.monotonic() - start, time.monotonic()
    finished(process)
    training = time.monotonic() - start

    kills = in_writing = ends = 0
    workdir = scratch / "killed"
    while kills < arguments.kills:
        process = live(functools.partial(run, "killed"))
        if kills % 4 == 3:
            while half_written(workdir) and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.001)  # what the life before has left
            while not half_written(workdir) and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.0005)
        else:
            time.sleep(rng.uniform(0.2 * to_train, to_train + 2 * training / arguments.kills))
        os.kill(process, signal.SIGKILL)
        status = ended(process)
        if status == 0:
            ends += 1  # the run had come to its end
            break
        if status != -signal.SIGKILL:
            sys.exit(f"a life ended by itself, with {status}:\n{Path(SCRATCH.name, 'output.txt').read_text()[-3000:]}")
        kills += 1
        in_writing += half_written(workdir)
        last = lines(workdir)[-1]["step"] if lines(workdir) else 0
        print(f"kill {kills}, at step {last}{', in a checkpoint' * half_written(workdir)}", flush=True)
    finished(live(functools.partial(run, "killed")))

    for name in ("whole", "killed"):
        finished(live(functools.partial(write_state, scratch / name, scratch / f"{name}.npz")))
    whole, killed = np.load(scratch / "whole.npz"), np.load(scratch / "killed.npz")
    torn = len(list((workdir / "checkpoints").glob("*.damaged*")))
    same_state = all(np.array_equal(whole[name], killed[name]) for name in whole)
    same_lines = lines(scratch / "whole") == lines(scratch / "killed")
    steps = lines(scratch / "whole")[-1]["step"]
    print(
        f"{kills} kills, {in_writing} in a checkpoint, {torn} torn, {steps} steps: "
        f"state equal {same_state}, lines equal {same_lines}"
    )
    if not arguments.no_log:
        save(
            "kills", kills=kills, in_a_checkpoint=in_writing, torn=torn, steps=steps, state_equal=same_state,
            lines_equal=same_lines, minutes=round((time.monotonic() - began) / 60, 1),
        )  # fmt: skip
    if ends or torn or not (same_state and same_lines):
        sys.exit("the run ended before it had been killed so often" if ends else "not the same")


if __name__ == "__main__":
    main()
