"""What each part of the network and of the augmentation is worth: §3.2 to §3.4, §4.1, §4.2 and §7, in small.

  python experiments/ablations.py --dataset=PHOTOS --workdir=DIR     8 hours on two cores; 3 minutes on an H100,
                                                                     14 processes at once

PHOTOS: prepared photographs; the numbers in results/ are of ten ImageNet classes of 400 training and 100 validation
photographs each. The network is `demo`, the paper's at a fraction of its width, for 24 epochs; each variant differs by
the one thing that its name says. Errors are those of the centre view. Expected: of three seeds only the loss of the
normalisation is resolved; the other differences are smaller than what the seeds make. Finished trainings stay in DIR;
the same command goes on after them. --variant=… and --seeds=… do a part, so that several processes can share the work;
the command without them then writes the log.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from record import save
from specialisation import colorfulness
from training import centers, errors_of, parsed, remembered

from alexnet_jax import DEMO, Config, dropout, fit, load, open_dataset, with_classes, with_steps
from alexnet_jax.paper.architectures import no_normalization, non_overlapping_pooling, one_gpu
from alexnet_jax.paper.table import Layers

EPOCHS, DROPS = 24.0, (16.0, 21.0)
CROP = 224


@dataclasses.dataclass(frozen=True)
class Variant:
    """imagenet: by how many points the errors, top-1 / top-5, rose in 2012 with the same change."""

    imagenet: str
    layers: Layers = DEMO
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    crops: bool = True


VARIANTS = {
    "demo": Variant(""),
    "one GPU": Variant("+1.7 / +1.2 (§3.2)", one_gpu(DEMO)),
    "no normalisation": Variant("+1.4 / +1.2 (§3.3)", no_normalization(DEMO)),
    "pooling does not overlap": Variant("+0.4 / +0.3 (§3.4)", non_overlapping_pooling(DEMO)),
    "no dropout": Variant("“substantial overfitting” (§4.2)", with_steps(DEMO, {dropout: None})),
    "no colour": Variant("over +1 / – (§4.1)", config={"color_scale": 0.0}),
    "no crops": Variant("“substantial overfitting” (§4.1)", crops=False),
    "no reflections": Variant("not told", config={"reflect": False}),
    "without conv4": Variant("about +2 / – (§7)", (*DEMO[:3], *DEMO[4:])),
}


def trained(name: str, dataset: str, seed: int, epochs: float, folder: Path) -> dict[str, Any]:
    """The errors at the end, and the colourfulness of the first layer's kernels."""
    variant, data = VARIANTS[name], open_dataset(dataset)
    data = data if variant.crops else centers(CROP, data)
    drops = tuple(drop * epochs / EPOCHS for drop in DROPS)
    config = Config(
        cache="device", crop_size=CROP, batch_size=32, epochs=epochs, learning_rate=0.01, learning_rate_drops=drops,
        seed=seed, **variant.config,
    )  # fmt: skip
    validation = fit(with_classes(variant.layers, len(data.class_names)), data, config, folder)
    network = load(folder)
    training = errors_of(network, data, "train")
    print(f"{name}, seed {seed}: error {validation.top1_error:.1%}, training {training.top1_error:.1%}", flush=True)
    return {
        "top1_error": validation.top1_error,
        "top5_error": validation.top5_error,
        "nll": validation.nll,
        "training_error": training.top1_error,
        "colorfulness": colorfulness(np.asarray(network.params["conv1"]["kernel"])),
    }


def main() -> None:
    arguments = parsed(__doc__, EPOCHS, quick=False, variant=VARIANTS)
    results: dict[str, list[Any]] = {name: [] for name in arguments.variant}
    for seed in arguments.seeds:
        for name, of in results.items():
            file = arguments.workdir / f"{name}_{seed}_{arguments.epochs:g}.json"
            folder = file.with_suffix("")
            compute = functools.partial(trained, name, arguments.dataset, seed, arguments.epochs, folder)
            of.append(remembered(file, arguments.dataset, compute))
    if len(results) == len(VARIANTS):
        save("ablations", epochs=arguments.epochs, seeds=arguments.seeds, results=results)


if __name__ == "__main__":
    main()
