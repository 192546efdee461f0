"""§6 in small: what weights gain on photographs of some classes, that were trained on photographs of others.

  python experiments/fine_tuning.py --source=PHOTOS --workdir=DIR     15 minutes on two cores

PHOTOS: what alexnet_jax.prepare takes, a folder or tar files of ten classes; the numbers in results/ are of Imagenette2
in 224 pixels, about 950 training and 390 validation photographs a class, here in 80. `demo` is trained on the first
five classes; then on the other five, from new values and, by --init_from, from these weights, which then learn at a
tenth of the rate, as by default, or at the whole one: with the same seeds, steps and rates, on all their photographs
and on a few. Errors are those of the centre view on all their validation photographs. Expected: at a tenth of the rate
no gain where there are few, and a loss of some points where there are all; at the whole rate a gain of two points where
there are all. The log is of --seeds=0,1,2,3,4. Finished trainings stay in DIR; the same command goes on after them.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

from record import save
from training import one_in, remembered

from alexnet_jax import DEMO, Config, Dataset, fit, open_dataset, with_classes
from alexnet_jax.data.layouts import sort_files
from alexnet_jax.data.shards import cores
from alexnet_jax.data.sources import list_all
from alexnet_jax.data.writing import write

SIZE, CROP, BATCH = 80, 72, 32
OTHERS, OWN = "others", "own"  # the halves of the classes
FEW = {"few": 40, "all": 1}  # one in so many of the training photographs
STEPS = {OTHERS: 1600, **dict.fromkeys(FEW, 800)}
RATE_OF_TAKEN = {"new": None, "taken": 0.1, "taken, at the whole rate": 1.0}


def prepare_halves(source: str, workdir: Path) -> None:
    """Two data sets, of the first half of the classes and of the other one, in the folders OTHERS and OWN."""
    whole = sort_files(list_all(source.split(","), workdir), validation_fraction=0.2, seed=0)
    middle = len(whole.class_names) // 2
    for half, labels in ((OTHERS, range(middle)), (OWN, range(middle, len(whole.class_names)))):
        splits = {
            split: [item._replace(label=item.label - labels[0]) for item in items if item.label in labels]
            for split, items in whole.splits.items()
        }
        if not (workdir / half).exists():
            names = [whole.class_names[label] for label in labels]
            write(workdir / half, names, splits, size=SIZE, workers=cores())


def trained(dataset: Dataset, seed: int, steps: int, workdir: Path, **changes: Any) -> dict[str, Any]:
    """The errors at the end, and on how many photographs it was trained."""
    images = len(dataset.splits["train"])
    epochs = steps * BATCH / images
    config = Config(
        cache="device", crop_size=CROP, batch_size=BATCH, epochs=epochs, learning_rate_drops=(0.75 * epochs,),
        seed=seed, log_every=50, evaluate_every=steps, checkpoint_every=steps, **changes,
    )  # fmt: skip
    errors = fit(with_classes(DEMO, len(dataset.class_names)), dataset, config, workdir)
    return {"images": images, "epochs": epochs, "top1_error": errors.top1_error, "nll": errors.nll}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    arguments = parser.parse_args()
    workdir = arguments.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    if not all((workdir / half).exists() for half in (OTHERS, OWN)):
        prepare_halves(arguments.source, workdir)
    others, own = (open_dataset(workdir / half) for half in (OTHERS, OWN))

    def result(name: str, dataset: Dataset, seed: int, steps: int, **changes: Any) -> dict[str, Any]:
        folder = workdir / f"{name}, {steps} steps, seed {seed}"
        compute = functools.partial(trained, dataset, seed, steps, folder, **changes)
        found = remembered(folder.with_suffix(".json"), str(dataset.path), compute)
        print(f"{folder.name}: error {found['result']['top1_error']:.1%}", flush=True)
        return found

    before: list[Any] = []
    results: dict[str, dict[str, list[Any]]] = {few: {way: [] for way in RATE_OF_TAKEN} for few in FEW}
    for seed in arguments.seeds:
        before.append(result(OTHERS, others, seed, STEPS[OTHERS]))
        origin = str(workdir / f"{OTHERS}, {STEPS[OTHERS]} steps, seed {seed}")
        for few, of in results.items():
            some = one_in(FEW[few], own)
            for way, rate in RATE_OF_TAKEN.items():
                changes = {"init_from": origin, "taken_rate_scale": rate} if rate else {}
                of[way].append(result(f"{few}, {way}", some, seed, STEPS[few], **changes))
    save(
        "fine_tuning", seeds=arguments.seeds, validation_images=len(own.splits["validation"]),
        classes={OTHERS: others.class_names, OWN: own.class_names}, steps=STEPS, before=before, results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
