"""Table 2 in small: one network and five, one view and ten, and networks that were pre-trained on other images.

  python experiments/table2.py --dataset=PHOTOS --pretraining=OTHERS --workdir=DIR   3 hours on two cores;
                                                                  3 minutes on an H100, its parts at once

PHOTOS: prepared photographs; the numbers in results/ are of ten ImageNet classes of 400 training and 100 validation
photographs each. OTHERS: prepared images of the same size, of other classes; there, 30,000 of CIFAR-10 enlarged. Five
networks, `demo`, are trained alike but for the seed; one with a sixth convolution is trained on OTHERS, and then on
PHOTOS from there, with a tenth of the rate in the weights that it brings. All through the package: training,
--init_from, evaluation of several networks. Expected: ten views and five networks lower top-1 by about two points each;
of 1,000 images and one training neither is resolved. Finished trainings stay in DIR; the same command goes on after
them. --name=… does a part, so that several processes can share the work; the command without it then writes the log.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from record import save

from alexnet_jax import DEMO, Config, fit, open_dataset, with_classes
from alexnet_jax.networks.ensemble import Answers, evaluate_networks, intervals, outcomes
from alexnet_jax.paper.architectures import six_conv
from alexnet_jax.paper.table import Layers

NETWORKS = tuple(f"network {seed}" for seed in range(5))
PRETRAINED = ("pre-trained 0",)
ROWS = {  # of the table: the networks, the views, and the paper's errors, top-1 / top-5, on ILSVRC
    "1 CNN, centre view": (NETWORKS[:1], 1, "39.0 / 18.3 (2010, §4.1)"),
    "1 CNN, ten views": (NETWORKS[:1], 10, "40.7 / 18.2 (2012); 37.5 / 17.0 (2010)"),
    "5 CNNs, ten views": (NETWORKS, 10, "38.1 / 16.4"),
    "1 CNN*, centre view": (PRETRAINED, 1, "–"),
    "1 CNN*, ten views": (PRETRAINED, 10, "39.0 / 16.6"),
    "6 CNNs*, ten views": ((*NETWORKS, *PRETRAINED), 10, "36.7 / 15.4 (7 CNNs*)"),
}

BEFORE = {  # what each row of Table 2 is compared with
    "1 CNN, ten views": "1 CNN, centre view", "5 CNNs, ten views": "1 CNN, ten views",
    "1 CNN*, centre view": "1 CNN, centre view", "1 CNN*, ten views": "1 CNN, ten views",
    "6 CNNs*, ten views": "5 CNNs, ten views",
}  # fmt: skip


def trained(name: str, dataset: str, pretraining: str, workdir: Path) -> None:
    """One of the networks, in a folder of its name."""
    seed = int(name.split()[1])
    common: dict[str, Any] = {"batch_size": 32, "learning_rate": 0.01, "seed": seed}
    photos = {**common, "cache": "device", "epochs": 24.0, "learning_rate_drops": (16.0, 21.0)}
    if name in NETWORKS:
        fitted(DEMO, dataset, Config(**photos), workdir / name)
        return
    origin = workdir / f"others {seed}"
    fitted(six_conv(DEMO), pretraining, Config(**common, epochs=2.0, learning_rate_drops=(1.5,)), origin)
    tuning = Config(**photos, init_from=str(origin), taken_rate_scale=0.1)
    fitted(six_conv(DEMO), dataset, tuning, workdir / name)


def fitted(layers: Layers, dataset: str, config: Config, workdir: Path) -> None:
    data = open_dataset(dataset)
    fit(with_classes(layers, len(data.class_names)), data, config, workdir)


def answers(network: Path, views: int) -> Path:
    """Where its answers are kept."""
    return network / f"{views} views" / "answers.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--pretraining", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--name", choices=[*NETWORKS, *PRETRAINED], nargs=1, default=[*NETWORKS, *PRETRAINED])
    arguments = parser.parse_args()

    for name in arguments.name:
        if all(answers(arguments.workdir / name, views).exists() for views in (1, 10)):
            continue
        trained(name, arguments.dataset, arguments.pretraining, arguments.workdir)
        for views in (1, 10):
            network = arguments.workdir / name
            evaluate_networks([str(network)], answers(network, views).parent, views=views)
    if len(arguments.name) < len(NETWORKS) + len(PRETRAINED):
        return
    results = {}
    for row, (networks, views, _) in ROWS.items():
        output = arguments.workdir / "table" / row
        evaluate_networks([str(answers(arguments.workdir / name, views)) for name in networks], output)
        found = json.loads((output / "result.json").read_text())["networks"]
        results[row] = {kind: of for kind, of in found[-1].items() if kind != "name"}  # of all together
    devices = {
        name: json.loads((arguments.workdir / name / "result.json").read_text())["device"] for name in arguments.name
    }
    save("table2", devices=devices, results=results, differences=differences(arguments.workdir / "table"))


def differences(folder: Path) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Of each row to the one in BEFORE, of the same images: the mean, and 95 % of bootstrap samples."""
    found = {}
    for row, before in BEFORE.items():
        after, earlier = (outcomes(Answers.load(folder / name / "answers.npz")) for name in (row, before))
        apart = {kind: after[kind] - earlier[kind] for kind in ("top1_error", "top5_error")}
        ends = intervals(apart)
        found[row] = {kind: (float(values.mean()), *ends[kind]) for kind, values in apart.items()}
    return found


if __name__ == "__main__":
    main()
