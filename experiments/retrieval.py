"""Figure 4, right: "five ILSVRC-2010 test images in the first column. The remaining columns show the six training
images that produce feature vectors in the last hidden layer with the smallest Euclidean distance from the feature
vector for the test image".

  python experiments/retrieval.py --workdir=RUN --figure=nearest.jpg              five validation images of RUN's data
  python experiments/retrieval.py --workdir=RUN --figure=nearest.jpg photo.jpg …  these pictures instead

RUN: a run of alexnet_jax.main. A minute on two cores for 4,000 training images; then seconds, since their features are
kept in RUN (features_….npy). The search is exact: all distances are computed. --dataset=PATH where the training images
lie elsewhere by now. Expected: what is nearest is mostly of the same class, and not because its pixels are alike.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

from alexnet_jax import figures
from alexnet_jax.config import InputError
from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.data.images import read_file
from alexnet_jax.device import xla
from alexnet_jax.networks import network as trained
from alexnet_jax.networks.layer_outputs import features, last_hidden, make_features

QUERIES, NEAREST, ROWS_AT_ONCE = 5, 6, 4096


def kept_features(network: trained.Trained, dataset: Dataset) -> np.ndarray:
    """Of the training images; from the file in the run's folder, or written there. A .safetensors has no folder."""
    if network.workdir.is_file():
        return features(network, dataset, "train", layer=last_hidden(network))
    name = f"features_{last_hidden(network)}_{network.step}_{dataset.fingerprint()}"
    file, partial = (network.workdir / f"{name}{ending}.npy" for ending in ("", ".partial"))
    if not file.exists():
        features(network, dataset, "train", layer=last_hidden(network), file=partial)
        partial.replace(file)
    return np.load(file, mmap_mode="r")


def nearest(stored: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each query (rows): the numbers of the nearest stored rows, the nearest first, and their distances."""
    distances = np.empty((len(queries), len(stored)))
    for first in range(0, len(stored), ROWS_AT_ONCE):
        rows = np.asarray(stored[first : first + ROWS_AT_ONCE], np.float64)
        for number, query in enumerate(queries.astype(np.float64)):
            distances[number, first : first + len(rows)] = np.linalg.norm(rows - query, axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(distances, order, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--figure", required=True, type=Path)
    parser.add_argument("--dataset", default="")
    parser.add_argument("--checkpoint", default="latest")
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()

    try:
        network = trained.load(arguments.workdir, arguments.checkpoint)
        dataset = network.open_dataset(arguments.dataset)
        if arguments.files:
            images = np.stack([read_file(file, network.size) for file in arguments.files])
            titles = [str(file) for file in arguments.files]
        else:
            numbers = np.linspace(0, len(dataset.splits["validation"]) - 1, QUERIES).astype(int)
            batch = input_pipeline.chosen(dataset, "validation", numbers)
            images, titles = batch.images, [dataset.class_names[label] for label in batch.labels]
        stored = kept_features(network, dataset)
        of_images = jax.jit(make_features(network, last_hidden(network)), compiler_options=xla.compiler_options())
        order, distances = nearest(stored, np.asarray(of_images(network.params, images)), NEAREST)
    except InputError as error:
        sys.exit(f"error: {error}")
    found = [input_pipeline.chosen(dataset, "train", row) for row in order]
    figures.save_neighbors(images, [batch.images for batch in found], arguments.figure)
    for title, batch, row in zip(titles, found, distances, strict=True):
        names = (dataset.class_names[label] for label in batch.labels)
        print(f"{title}: " + ", ".join(f"{name} ({distance:.1f})" for name, distance in zip(names, row, strict=True)))


if __name__ == "__main__":
    main()
