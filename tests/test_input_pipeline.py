import collections
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import input_pipeline
from alexnet_jax.config import InputError
from alexnet_jax.datasets import open_dataset


@pytest.fixture(scope="module")
def dataset(prepared):
    return open_dataset(str(prepared))


def identities(batches):
    """The images of some batches, each as its bytes."""
    return [image.tobytes() for batch in batches for image in batch.images]


def stored(dataset, split):
    """The images of a split, decoded by Pillow, and its examples."""
    examples = list(dataset.splits[split])
    return [np.asarray(Image.open(io.BytesIO(example["image"]))) for example in examples], examples


def read(dataset, steps, seed=0, batch_size=16):
    return list(input_pipeline.training_batches(dataset, batch_size=batch_size, seed=seed, steps=steps))


def test_batches_are_uint8_images_with_their_labels(dataset):
    (batch,) = read(dataset, range(1))
    assert (batch.images.shape, batch.images.dtype) == ((16, 40, 40, 3), np.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((16,), np.int32)
    of_bytes = {image.tobytes(): example["label"] for image, example in zip(*stored(dataset, "train"), strict=True)}
    assert [of_bytes[image] for image in identities([batch])] == batch.labels.tolist()


def test_each_epoch_holds_each_image_once_in_a_new_order(dataset):
    seen = identities(read(dataset, range(25)))  # 8 epochs of 50 images, in batches of 16
    assert len(seen) == 400
    epochs = [seen[50 * n : 50 * (n + 1)] for n in range(8)]
    assert all(collections.Counter(epoch) == collections.Counter(epochs[0]) for epoch in epochs)
    assert len(set(epochs[0])) == 50
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_a_batch_is_a_function_of_seed_and_step(dataset):
    whole = read(dataset, range(9))
    rest = read(dataset, range(5, 9))
    for first, second in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)
    assert identities(whole) != identities(read(dataset, range(9), seed=1))


@pytest.mark.parametrize("batch_size", [1, 10, 22, 23, 24])
def test_evaluation_reads_each_image_once_in_order(dataset, batch_size):
    batches = list(input_pipeline.evaluation_batches(dataset, "validation", batch_size=batch_size))
    assert {batch.images.shape[0] for batch in batches} == {batch_size}
    labels = np.concatenate([batch.labels for batch in batches])
    expected = [example["label"] for example in dataset.splits["validation"]]
    assert labels.tolist() == expected + [-1] * (len(labels) - 23)
    images, _ = stored(dataset, "validation")
    assert identities(batches)[:23] == [image.tobytes() for image in images]


def test_a_damaged_record_is_named(dataset):
    records = list(dataset.splits["validation"])
    records[7] = {**records[7], "image": records[7]["image"][:100]}
    damaged = dataclasses.replace(dataset, splits={"validation": records})
    with pytest.raises(InputError, match="record 7 of 'validation' is damaged"):
        list(input_pipeline.evaluation_batches(damaged, "validation", batch_size=10))
