import collections
import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import input_pipeline, shards
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.options import InputError


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
def test_evaluation_reads_each_image_once_in_order(dataset, batch_size, monkeypatch):
    monkeypatch.setattr(input_pipeline, "PART", 5)
    batches = list(input_pipeline.evaluation_batches(dataset, "validation", batch_size=batch_size))
    assert {batch.images.shape[0] for batch in batches} == {batch_size}
    labels = np.concatenate([batch.labels for batch in batches])
    expected = [example["label"] for example in dataset.splits["validation"]]
    assert labels.tolist() == expected + [-1] * (len(labels) - 23)
    images, _ = stored(dataset, "validation")
    assert identities(batches)[:23] == [image.tobytes() for image in images]
    assert not any(batches[-1].images[batches[-1].labels < 0].ravel())


@pytest.mark.parametrize("batch_size", [16, 48])
def test_the_parts_that_hosts_read_make_up_the_batch(dataset, batch_size, monkeypatch):
    monkeypatch.setattr(input_pipeline, "PART", 5)
    whole = read(dataset, range(3), batch_size=batch_size)
    options = {"batch_size": batch_size, "seed": 0, "steps": range(3)}
    cuts = [range(7), range(7, batch_size)]
    hosts = [list(input_pipeline.training_batches(dataset, rows=rows, **options)) for rows in cuts]
    assert [len(batch.labels) for batch in hosts[0]] == [7, 7, 7]
    for batch, *parts in zip(whole, *hosts, strict=True):
        np.testing.assert_array_equal(batch.images, np.concatenate([part.images for part in parts]))
        np.testing.assert_array_equal(batch.labels, np.concatenate([part.labels for part in parts]))


@pytest.mark.parametrize("rows", [None, range(4, 12)])
def test_the_numbers_of_images_are_those_of_the_batches(dataset, rows):
    images, examples = stored(dataset, "train")
    options = {"batch_size": 16, "seed": 3, "steps": range(2, 7), "rows": rows}
    numbers = list(input_pipeline.training_indices(dataset, **options))
    batches = list(input_pipeline.training_batches(dataset, **options))
    assert len(numbers) == len(batches) == 5
    for of_batch, batch in zip(numbers, batches, strict=True):
        assert of_batch.dtype == np.int32
        np.testing.assert_array_equal(batch.images, np.stack([images[number] for number in of_batch]))
        assert batch.labels.tolist() == [examples[number]["label"] for number in of_batch]


def test_a_whole_split_is_in_order(dataset, monkeypatch):
    monkeypatch.setattr(input_pipeline, "PART", 7)
    batch = input_pipeline.whole_split(dataset, "train")
    images, examples = stored(dataset, "train")
    np.testing.assert_array_equal(batch.images, np.stack(images))
    assert batch.labels.tolist() == [example["label"] for example in examples]


def test_memory_is_used_again_when_nothing_refers_to_it_and_not_before():
    """JAX's CPU arrays may be the host's own memory: a batch must not change while one of its arrays lives."""
    memory = input_pipeline._Memory()
    first = memory.array((4, 1000))
    first[...] = 1
    part = first.reshape(2, -1)[1:]
    del first
    second = memory.array((4, 1000))
    second[...] = 2
    assert np.all(part == 1)
    assert not np.shares_memory(part, second)
    del part
    third = memory.array((4, 1000))
    assert np.all(third == 1)
    assert not memory._free


@pytest.mark.parametrize("what", ["image", "half", "rest"])
def test_a_mutilated_shard_is_named_with_the_record(dataset, prepared, tmp_path, what):
    shutil.copytree(prepared, tmp_path / "damaged")
    (shard,) = (tmp_path / "damaged").glob("images-validation.array_record*")
    content, jpeg = shard.read_bytes(), dataset.splits["validation"][7]["image"]
    place = content.index(jpeg) + len(jpeg) // 2
    changed = {
        "image": content[:place] + bytes(100) + content[place + 100 :],
        "half": content[: len(content) // 2],
        "rest": content[:place] + bytes(len(content) - place),
    }
    shard.write_bytes(changed[what])
    with pytest.raises(InputError, match=r"record [0-9]+: cannot be read \(.+\)") as error:
        list(input_pipeline.evaluation_batches(open_dataset(str(shard.parent)), "validation", batch_size=10))
    assert str(shard) in str(error.value)
    assert what != "image" or "record 7:" in str(error.value)


def test_a_damaged_image_is_named_with_its_shard_and_record(prepared, monkeypatch):
    dataset = open_dataset(str(prepared))
    whole = shards.Records.__getitem__

    read = []

    def cut(records, index):
        read.append(index)
        time.sleep(0.02)
        example = whole(records, index)
        return {**example, "image": example["image"][:100]} if index == 7 else example

    monkeypatch.setattr(shards.Records, "__getitem__", cut)
    monkeypatch.setattr(input_pipeline, "PART", 1)
    with pytest.raises(InputError, match=r"images-validation.array_record-00000, record 7: the image is damaged"):
        list(input_pipeline.evaluation_batches(dataset, "validation", batch_size=23))
    time.sleep(0.5)
    assert len(read) < 23  # nothing more is read after the error
