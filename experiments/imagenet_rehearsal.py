"""ImageNet's way through this package, with as many images, in two tars of the true form.

  python experiments/imagenet_rehearsal.py --photos=photos10.tar --scratch=DIR                hours on two cores
  python experiments/imagenet_rehearsal.py --photos=photos10.tar --scratch=DIR --one_part     the next part alone

1,281,167 JPEGs in 1,000 synset tars in ILSVRC2012_img_train.tar, 50,000 in ILSVRC2012_img_val.tar: photographs of ten
classes, 72 × 72 pixels, so that they fit onto a disk, and each with its number drawn into it. `prepare` is killed
(SIGKILL) three times and started again. One epoch is read in random order, and every number looked for. `paper` trains
on patches of 64 × 64 from the middle of epoch 60 on, is stopped, and continues; another run from there is left alone.
The first is evaluated on all validation images. Each part is a process of its own, watched with all that it starts:
memory, open files, processor time, bytes read and written. The same command continues where it was stopped.

Expected: each number once, with its label; what a kill has left is kept; the losses of both runs equal to the last
digit. What depends on the size of an image (bytes, time) is of these small ones.
"""

import argparse
import dataclasses
import functools
import io
import json
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from numbered_images import SIDE, drawn, numbers_in, photographs
from record import circumstances, save
from watched import watched

from alexnet_jax import PAPER, PRESETS, AlexNet, init_state, open_dataset, to_json
from alexnet_jax.data import archives, imagenet, input_pipeline
from alexnet_jax.paper.optim import configured_rule
from alexnet_jax.paper.table import Layers
from alexnet_jax.paper.train_state import TrainState
from alexnet_jax.runs import workdir
from alexnet_jax.runs.checkpoint import Checkpoints
from alexnet_jax.runs.log import METRICS, read_metrics

TRAIN, VALIDATION = 1_281_167, 50_000
EPOCH, BATCH, SEED, CROP = 59.5, 128, 0, 64  # the middle of the sixtieth; of the preset


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """How many images, and where. Training images have the numbers from 0 on, in the order of the tar; validation
    images those after them.
    """

    scratch: Path
    train: int
    validation: int
    size: int
    steps: int
    photos: str

    @property
    def source(self) -> Path:
        return self.scratch / "ILSVRC2012"

    @property
    def output(self) -> Path:
        return self.scratch / "imagenet"

    @property
    def synsets(self) -> list[str]:
        return [*imagenet.synsets()]

    def labels(self, numbers: np.ndarray) -> np.ndarray:
        """Training images are dealt to the classes alike; the first have one more."""
        each, more = divmod(self.train, 1000)
        starts = np.array([label * each + min(label, more) for label in range(1000)])
        order = {synset: label for label, synset in enumerate(self.synsets)}
        validation = np.array([order[name] for name in archives._lines("validation_labels.txt")])
        of_train = np.searchsorted(starts, np.minimum(numbers, self.train - 1), side="right") - 1
        return np.where(
            numbers < self.train, of_train, validation[np.clip(numbers - self.train, 0, len(validation) - 1)]
        )


def make_tars(of: Rehearsal) -> dict[str, Any]:
    """Both, as image-net.org gives them."""
    shutil.rmtree(of.source, ignore_errors=True)
    of.source.mkdir(parents=True)
    kept = photographs(of.photos)

    def files(numbers: np.ndarray, names: list[str]) -> Iterator[tuple[str, bytes]]:
        labels = of.labels(numbers)
        chosen = [kept[label % len(kept)][number % len(kept[label % len(kept)])] for label, number in
                  zip(labels, numbers, strict=True)]  # fmt: skip
        for name, image in zip(names, drawn(np.stack(chosen), numbers), strict=True):
            yield name, simplejpeg.encode_jpeg(image, quality=85, colorsubsampling="420")

    def write(archive: tarfile.TarFile, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    all_labels, images = of.labels(np.arange(of.train)), 0
    with tarfile.open(of.source / archives.IMAGENET[0], "w") as archive:
        for label, synset in enumerate(of.synsets):
            numbers, inner = np.flatnonzero(all_labels == label), io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as of_synset:
                for name, content in files(numbers, [f"{synset}_{number}.JPEG" for number in numbers]):
                    write(of_synset, name, content)
                    images += len(content)
            write(archive, f"{synset}.tar", inner.getvalue())
    with tarfile.open(of.source / archives.IMAGENET[1], "w") as archive:
        numbers = np.arange(of.train, of.train + of.validation)
        for first in range(0, of.validation, 1000):
            part = numbers[first : first + 1000]
            for name, content in files(part, [f"ILSVRC2012_val_{n - of.train + 1:08}.JPEG" for n in part]):
                write(archive, name, content)
                images += len(content)
    sizes = {file.name: file.stat().st_size for file in sorted(of.source.iterdir())}
    return {"bytes": sizes, "mean_bytes_of_an_image": round(images / (of.train + of.validation))}


def module(name: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"alexnet_jax.{name}", *flags]


def size_of(folder: Path) -> int:
    """Bytes of the files below it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def prepare(of: Rehearsal, quarter: int) -> dict[str, Any]:
    """Runs it until that many quarters of the shards are there, and kills it then; the fourth time up to its end."""
    folder = of.output.with_name(f"{of.output.name}.incomplete")
    shards = -(-of.train // 1024) - (-of.validation // 1024)
    kept = {of.stem: (folder / f"{of.stem}.shard").stat() for of in folder.glob("*.npz")}
    first: list[float] = []
    start = time.perf_counter()

    def there() -> int:
        return sum(1 for _ in folder.glob("*.npz"))

    def reached() -> bool:
        count = there()
        if count > len(kept) and not first:
            first.append(time.perf_counter() - start)
        return quarter < 4 and count >= max(quarter * shards / 4, len(kept) + 1)

    flags = (f"--source={of.source}", f"--output={of.output}", f"--size={of.size}")
    told = watched(module("prepare", *flags), reached)
    now = {file.stat().st_ino: file.stat() for file in (of.output if quarter == 4 else folder).iterdir()}
    same = sum(old.st_ino in now and now[old.st_ino].st_mtime_ns == old.st_mtime_ns for old in kept.values())
    after = shards if quarter == 4 else there()
    seconds = told["seconds"] - first[0]
    return {**told, "shards_before": len(kept), "of_these_kept": same, "shards_after": after, "of_shards": shards,
            "seconds_to_the_first_shard": round(first[0], 1), 
            "shards_per_second": round((after - len(kept)) / seconds, 2),
            "bytes": size_of(of.output if quarter == 4 else folder)}  # fmt: skip


def read_epoch(of: Rehearsal) -> dict[str, Any]:
    """All training images once, in the order of the first epoch; which numbers came, and with which labels."""
    start = time.perf_counter()
    dataset = open_dataset(str(of.output))
    opened = time.perf_counter() - start
    steps = range(-(-of.train // BATCH))
    indices = input_pipeline.training_indices(dataset, BATCH, SEED, steps)
    times, wrong, moved, labels = np.zeros(of.train, np.int64), 0, 0, 0
    clock = []
    for batch, expected in zip(input_pipeline.training_batches(dataset, BATCH, SEED, steps), indices, strict=True):
        clock.append(time.perf_counter() - start)
        rows = slice(0, of.train - BATCH * (len(clock) - 1))  # the last batch goes on into the next epoch
        numbers = numbers_in(batch.images[rows])
        wrong += int((numbers < 0).sum())
        moved += int((numbers != expected[rows]).sum())
        labels += int((of.labels(numbers) != batch.labels[rows]).sum())
        np.add.at(times, numbers[numbers >= 0], 1)
    tenth = max(1, len(clock) // 10)
    return {
        "seconds_to_open": round(opened, 2), "seconds_to_the_first_batch": round(clock[0] - opened, 2),
        "images": of.train, "once": int((times == 1).sum()), "never": int((times == 0).sum()),
        "more_often": int((times > 1).sum()), "unreadable": wrong, 
        "not_in_the_order_said": moved, "wrong_label": labels,
        "images_per_second": round(of.train / (clock[-1] - opened)),
        "images_per_second_of_the_first_and_last_tenth": [
            round(BATCH * (tenth - 1) / max(clock[part][-1] - clock[part][0], 1e-9))
            for part in (slice(0, tenth), slice(-tenth, None))
        ],
    }  # fmt: skip


def set_step(of: Rehearsal) -> dict[str, Any]:
    """The run's checkpoint as if it were of the middle of epoch 60: its step, and the counts of steps in the optimizer;
    all else is as its few steps have left it. And what a checkpoint takes, of it and of the network at 224 pixels.
    """
    facts = workdir.read(of.scratch / "run")
    per_epoch = of.train / BATCH
    step = jnp.int32(round(EPOCH * per_epoch))
    like = init_state(
        AlexNet(facts.layers), configured_rule(facts.config, per_epoch), image_size=facts.config.crop_size
    )
    checkpoints = Checkpoints(of.scratch / "run" / "checkpoints")
    found = checkpoints.restore_latest(like, to_json(facts.layers))
    assert found
    before = found[0]

    def moved(path: Any, leaf: Any) -> Any:
        is_count = "count" in jax.tree_util.keystr(path)
        assert not is_count or leaf == before.step
        return step if is_count else leaf

    after = before.replace(step=step, opt_state=jax.tree_util.tree_map_with_path(moved, before.opt_state))

    def written(checkpoints: Checkpoints, state: TrainState, layers: Layers) -> dict[str, Any]:
        start = time.perf_counter()
        checkpoints.save(int(state.step), state, to_json(layers), {"sums": {}, "lowest": 2.0})
        returned = time.perf_counter() - start
        checkpoints.close()
        folder = checkpoints._folder / str(int(state.step))
        return {"bytes": size_of(folder), "seconds_of_the_loop": round(returned, 2),
                "seconds": round(time.perf_counter() - start, 2)}  # fmt: skip

    def noise(leaf: Any) -> Any:
        """A velocity as after some steps: zeros would be compressed to nothing."""
        return jax.random.normal(jax.random.key(leaf.size), leaf.shape) if leaf.ndim else leaf

    result = {"step_before": int(before.step), "step": int(step), "epoch": EPOCH,
              "of_the_run": written(checkpoints, after, facts.layers)}  # fmt: skip
    large = init_state(AlexNet(PAPER), configured_rule(PRESETS["paper"], per_epoch))
    large = large.replace(opt_state=jax.tree.map(noise, large.opt_state))
    with tempfile.TemporaryDirectory(dir=of.scratch) as folder:
        result["at 224 pixels"] = written(Checkpoints(Path(folder)), large, PAPER)
    return result


def lines_of(run: Path) -> dict[int, float]:
    """By step, the loss."""
    return {line["step"]: line["loss"] for line in read_metrics(run / METRICS) if line.get("split") == "train"}


def train(of: Rehearsal, run: str, steps: int) -> dict[str, Any]:
    """Until the run's log has so many steps more, and stops it (SIGTERM)."""
    folder = of.scratch / run
    before = max((int(of.name) for of in (folder / "checkpoints").glob("*") if of.name.isdecimal()), default=0)
    start, first = time.perf_counter(), []

    def reached() -> bool:
        last = max(lines_of(folder), default=0)
        if last > before and not first:
            first.append(time.perf_counter() - start)
        return last >= before + steps

    flags = (f"--workdir={folder}", f"--dataset={of.output}", "--preset=paper", f"--crop_size={CROP}", "--log_every=1")
    told = watched(module("main", *flags), reached, signal.SIGTERM)
    seconds = told["seconds"] - first[0] - (told["seconds_after_the_signal"] or 0)
    return {**told, "from_step": before, "to_step": max(lines_of(folder)),
            "seconds_to_the_first_step": round(first[0], 1),
            "seconds_a_step": round(seconds / max(1, steps - 1), 2)}  # fmt: skip


def evaluate(of: Rehearsal) -> dict[str, Any]:
    """The run on all validation images, by the command; its answers, counted again."""
    flags = ("--mode=evaluate", f"--workdir={of.scratch / 'run'}", f"--dataset={of.output}")
    told = watched(module("main", *flags))
    folder = of.scratch / "run" / "evaluation"
    result = json.loads((folder / "result.json").read_text())
    with np.load(folder / "answers.npz") as answers:
        logits, labels = answers["logits"], answers["labels"]
    expected = of.labels(np.arange(of.train, of.train + of.validation))
    return {**told, "examples": result["examples"], "top1_error": result["networks"][0]["top1_error"],
            "counted_again": float((logits.argmax(1) != labels).mean()),
            "wrong_label": int((labels != expected).sum())}  # fmt: skip


OWN: dict[str, Callable[[Rehearsal], dict[str, Any]]] = {"make_tars": make_tars, "read_epoch": read_epoch,
                                                         "set_step": set_step}  # fmt: skip


def parts(of: Rehearsal, flags: list[str]) -> dict[str, Callable[[], dict[str, Any]]]:
    """By name, in their order."""

    def own(name: str) -> dict[str, Any]:
        """One that is a function here, in a process of its own."""
        told = watched([sys.executable, __file__, *flags, f"--only={name}"])
        return {**told, **json.loads(told.pop("output").splitlines()[-1])}

    def copied() -> dict[str, Any]:
        shutil.rmtree(of.scratch / "whole", ignore_errors=True)
        shutil.copytree(of.scratch / "run", of.scratch / "whole")
        return {}

    return {
        "make_tars": lambda: own("make_tars"),
        **{f"prepare_{quarter}": functools.partial(prepare, of, quarter) for quarter in (1, 2, 3, 4)},
        "verify": lambda: watched(module("prepare", f"--verify={of.output}")),
        "read_epoch": lambda: own("read_epoch"),
        "first_steps": lambda: train(of, "run", 2),
        "set_step": lambda: own("set_step"),
        "copied": copied,
        "stopped": lambda: train(of, "run", of.steps),
        "continued": lambda: train(of, "run", of.steps),
        "left_alone": lambda: train(of, "whole", 2 * of.steps),
        "evaluate": lambda: evaluate(of),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--scratch", required=True, type=Path)
    parser.add_argument("--train", type=int, default=TRAIN, help="images, a thousand at least")
    parser.add_argument("--validation", type=int, default=VALIDATION)
    parser.add_argument("--steps", type=int, default=100, help="of training before the stop, and after it")
    parser.add_argument("--size", type=int, default=SIDE, help="of the prepared images, in pixels")
    parser.add_argument("--one_part", action="store_true")
    parser.add_argument("--only", choices=OWN, help=argparse.SUPPRESS)
    parser.add_argument("--no_log", action="store_true")
    arguments = parser.parse_args()
    of = Rehearsal(
        arguments.scratch, arguments.train, arguments.validation, arguments.size, arguments.steps, arguments.photos
    )
    if arguments.only:
        print(json.dumps(OWN[arguments.only](of)))
        return
    done = of.scratch / "parts"
    done.mkdir(parents=True, exist_ok=True)
    flags = [word for word in sys.argv[1:] if word not in ("--one_part", "--no_log")]
    results = {}
    for name, run in parts(of, flags).items():
        file = done / f"{name}.json"
        if not file.exists():
            print(f"{name} …", flush=True)
            made = run()
            file.write_text(json.dumps({**circumstances(), **made}))
            print({of: value for of, value in made.items() if of not in ("memory_by_time", "output")}, flush=True)
            if arguments.one_part:
                return
        results[name] = json.loads(file.read_text())
    losses = {run: lines_of(of.scratch / run) for run in ("run", "whole")}
    first = results["set_step"]["step"]
    both = [step for step in losses["run"] if step > first and step in losses["whole"]]
    equal = sum(losses["run"][step] == losses["whole"][step] for step in both)
    print(f"{equal} of {len(both)} losses are equal")
    if not arguments.no_log:
        save("imagenet_rehearsal", images={"train": of.train, "validation": of.validation}, size=of.size,
             source_side=SIDE, crop_size=CROP, steps_compared=len(both), losses_equal=equal, parts=results)  # fmt: skip


if __name__ == "__main__":
    main()
