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

import numpy as np

from alexnet_jax import Dataset, InputError, Trained, figures, load
from alexnet_jax.data import input_pipeline
from alexnet_jax.networks.layer_outputs import features_of_split, last_hidden

QUERIES, NEAREST, ROWS_AT_ONCE = 5, 6, 4096


def kept_features(network: Trained, dataset: Dataset) -> np.ndarray:
    """Of the training images; from the file in the run's folder, or written there. A .safetensors has no folder."""
    output = last_hidden(network)
    if network.source.is_file():
        return features_of_split(network, dataset, "train", output=output)
    name = f"features_{output.replace(':', '_')}_{network.step}_{dataset.fingerprint()}"
    file, partial = (network.source / f"{name}{ending}.npy" for ending in ("", ".partial"))
    if not file.exists():
        features_of_split(network, dataset, "train", output=output, file=partial)
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
        network = load(arguments.workdir, arguments.checkpoint)
        dataset = network.open_dataset(arguments.dataset)
        if arguments.files:
            images = np.stack([network.preprocess(file) for file in arguments.files])
            titles = [str(file) for file in arguments.files]
        else:
            numbers = np.linspace(0, len(dataset.splits["validation"]) - 1, QUERIES).astype(int)
            batch = input_pipeline.batch_of(dataset, "validation", numbers)
            images, titles = batch.images, [dataset.class_names[label] for label in batch.labels]
        stored = kept_features(network, dataset)
        output = last_hidden(network)
        order, distances = nearest(stored, network.features(images, [output])[output], NEAREST)
    except InputError as error:
        sys.exit(f"error: {error}")
    found = [input_pipeline.batch_of(dataset, "train", row) for row in order]
    figures.save_neighbors(images, [batch.images for batch in found], arguments.figure)
    for title, batch, row in zip(titles, found, distances, strict=True):
        names = (dataset.class_names[label] for label in batch.labels)
        print(f"{title}: " + ", ".join(f"{name} ({distance:.1f})" for name, distance in zip(names, row, strict=True)))


if __name__ == "__main__":
    main()
