"""§6.1, said in numbers: "the network has learned a variety of frequency- and orientation-selective kernels, as well as
various colored blobs"; and images whose features are near show the same thing, though they "are generally not close in
L2" by their pixels.

  python experiments/kernels_and_neighbors.py --workdir=RUN      a minute on two cores for 4,000 training images

RUN: a run of alexnet_jax.main; the numbers in results/ are of the README's run on photographs, shortened.

Kernels: of each one of the first layer, without its colour, the spectrum. Orientation selectivity: the length of the
mean of exp(2iθ) over the spectrum's power, 0 where all directions have as much of it, 1 where one has all. Frequency
selectivity: the share of the power in the strongest ring of six. Both beside those of random kernels of the same size.
Neighbours: for each validation image, whether the training image with the nearest features (last hidden layer) has its
class; the same by pixels; and where the one with the nearest features stands among all by distance of pixels (0: the
nearest, 1: the farthest; 0.5: as any other). Expected: learned kernels are more selective than random ones; features
find the class more often than pixels do, and their nearest are nearer in pixels than chance, but far from the nearest.
"""

import argparse
from typing import Any

import numpy as np
from record import save
from specialisation import colorfulness

from alexnet_jax import Dataset, Trained, features_of_split, load
from alexnet_jax.data import input_pipeline
from alexnet_jax.networks.ensemble import intervals
from alexnet_jax.networks.layer_outputs import last_hidden

RINGS, PIXELS = 6, 32


def selectivity(kernels: np.ndarray, padded: int = 64) -> dict[str, np.ndarray]:
    """Of each kernel (window, window, 3, features): how selective it is for an orientation, and for a frequency."""
    grey = kernels.astype(np.float64).mean(axis=2).transpose(2, 0, 1)
    grey = grey - grey.mean(axis=(1, 2), keepdims=True)
    window = np.hanning(grey.shape[1] + 2)[1:-1]
    power = np.abs(np.fft.fft2(grey * window[:, None] * window, s=(padded, padded))) ** 2
    rows, columns = np.meshgrid(*[np.fft.fftfreq(padded)] * 2, indexing="ij")
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    power = np.where((radius > 0) & (radius <= 0.5), power, 0)
    power /= power.sum(axis=(1, 2), keepdims=True)
    orientation = np.abs((power * np.exp(2j * angle)).sum(axis=(1, 2)))
    ring = np.minimum((radius / 0.5 * RINGS).astype(int), RINGS - 1)
    rings = np.stack([np.where(ring == number, power, 0).sum(axis=(1, 2)) for number in range(RINGS)])
    return {"orientation": orientation, "frequency": rings.max(axis=0)}


def pixels(dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of a split as rows of PIXELS × PIXELS means, and their labels."""
    step, images = dataset.size // PIXELS, len(dataset.splits[split])
    rows, labels = [], []
    for batch in input_pipeline.evaluation_batches(dataset, split, batch_size=128):
        cut = np.asarray(batch.images, np.float32)[:, : step * PIXELS, : step * PIXELS]
        means = cut.reshape(len(cut), PIXELS, step, PIXELS, step, 3).mean(axis=(2, 4))
        rows.append(means.reshape(len(cut), -1))
        labels.append(np.asarray(batch.labels))
    return np.concatenate(rows)[:images], np.concatenate(labels)[:images]


def distances(queries: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Euclidean, squared; (queries, stored)."""
    squares = (queries.astype(np.float64) ** 2).sum(1)[:, None] + (stored.astype(np.float64) ** 2).sum(1)
    return squares - 2 * queries.astype(np.float64) @ stored.astype(np.float64).T


def neighbors(network: Trained, dataset: Dataset) -> dict[str, Any]:
    """Means over the validation images, and 95 % of bootstrap samples of them."""
    output = last_hidden(network)
    by_features = distances(*(features_of_split(network, dataset, of, output=output) for of in ("validation", "train")))
    (queries, labels), (stored, classes) = pixels(dataset, "validation"), pixels(dataset, "train")
    by_pixels = distances(queries, stored)
    nearest = by_features.argmin(axis=1)
    ranks = (by_pixels < np.take_along_axis(by_pixels, nearest[:, None], axis=1)).mean(axis=1)
    found = {
        "same class, by features": 1.0 * (classes[nearest] == labels),
        "same class, by pixels": 1.0 * (classes[by_pixels.argmin(axis=1)] == labels),
        "place by pixels of the nearest by features": ranks,
    }
    found["features minus pixels"] = found["same class, by features"] - found["same class, by pixels"]
    ends = intervals(found)
    return {name: (float(of.mean()), *ends[name]) for name, of in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    arguments = parser.parse_args()
    network = load(arguments.workdir)
    dataset = network.open_dataset("")
    kernels = np.asarray(network.params["conv1"]["kernel"])
    random = np.random.default_rng(0).standard_normal((*kernels.shape[:3], 1000))
    found = {name: selectivity(of) for name, of in {"learned": kernels, "random": random}.items()}
    values = {name: {kind: of.tolist() for kind, of in kinds.items()} for name, kinds in found.items()}
    limits = {kind: float(np.quantile(of, 0.95)) for kind, of in found["random"].items()}
    values["learned"]["colorfulness"] = colorfulness(kernels)
    values["above 95 % of the random ones"] = {
        kind: float((found["learned"][kind] > limit).mean()) for kind, limit in limits.items()
    }
    values["random"] = {kind: [float(of.mean()), float(of.std())] for kind, of in found["random"].items()}
    of_images = neighbors(network, dataset)
    for name, of in {**values["above 95 % of the random ones"], **of_images}.items():
        print(f"{name}: {of}")
    epochs = network.step * network.config.batch_size / len(dataset.splits["train"])
    save(
        "kernels_and_neighbors", epochs=epochs, seed=network.config.seed, kernels=values, neighbors=of_images,
        images=len(dataset.splits["validation"]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
