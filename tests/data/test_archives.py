"""ImageNet's tars, CIFAR-10's archives and TFDS data sets, as their owners publish them."""

import functools
import io
import os
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import picture
from PIL import Image

from alexnet_jax import prepare
from alexnet_jax.data import archives, cifar10
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.options import InputError


def run(source, output, **options):
    prepare.prepare(prepare.Options(source=(str(source),), output=str(output), workers=1, **options))
    return open_dataset(str(output))


def refused(message, source, output, **options):
    with pytest.raises(InputError, match=message) as caught:
        run(source, output, **options)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(output)


def tar_of(members, file, mode="w"):
    with tarfile.open(file, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def encoded(image, format="JPEG"):
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


# ImageNet

SYNSETS = ("n01440764", "n01751748", "n02105855")  # 1751748 and 2105855: of validation images 1 and 3
KINDS = {  # as in the real set: most are colour JPEGs, some grey or CMYK, and one is a PNG by another name
    "colour": lambda image: encoded(image),
    "grey": lambda image: encoded(image.convert("L")),
    "cmyk": lambda image: encoded(image.convert("CMYK")),
    "png": lambda image: encoded(image, "PNG"),
}


@pytest.fixture
def imagenet(tmp_path):
    """Fake ILSVRC tars of three synsets; each image's brightest channel is its class."""
    folder = tmp_path / "ILSVRC2012"
    folder.mkdir()

    def image(label, number, kind):
        return KINDS[kind](Image.fromarray(picture(label, number, 80)[:60]))

    train = []
    for label, synset in enumerate(SYNSETS):
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w") as archive:
            for number, kind in enumerate(KINDS):
                data = image(label, number, kind)
                info = tarfile.TarInfo(f"{synset}_{number}.JPEG")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        train.append((f"{synset}.tar", inner.getvalue()))
    tar_of(train, folder / archives.IMAGENET[0])
    validation = [(f"ILSVRC2012_val_0000000{n}.JPEG", image(n % 3, n, "colour")) for n in (1, 2, 3)]
    tar_of(validation, folder / archives.IMAGENET[1])
    return folder


def test_imagenets_tars_come_back_with_their_labels_and_names(imagenet, tmp_path, capsys):
    dataset = run(imagenet, tmp_path / "out", size=32)
    assert dataset.class_names == ("tench", "sea snake", "Shetland sheepdog")
    builder = tfds.builder_from_directory(tmp_path / "out")
    train = list(builder.as_data_source(split="train"))
    assert [example["name"].decode() for example in train] == [
        f"{synset}/{synset}_{number}.JPEG" for synset in SYNSETS for number in range(4)
    ]
    for number, example in enumerate(train):
        assert example["label"] == number // 4
        if number % 4 != 1:  # the grey one
            assert example["image"].mean((0, 1)).argmax() == number // 4
    validation = [(e["name"].decode(), SYNSETS[e["label"]]) for e in builder.as_data_source(split="validation")]
    # The labels of tensorflow-datasets; the second image is of a synset that these tars do not have.
    assert validation == [("ILSVRC2012_val_00000001.JPEG", "n01751748"), ("ILSVRC2012_val_00000003.JPEG", "n02105855")]
    assert "3 of the 1,000 synsets" in capsys.readouterr().out


def test_imagenets_labels_are_whole():
    labels, synsets = archives._lines("validation_labels.txt"), archives._lines("labels.txt")
    assert (len(labels), len(synsets)) == (50_000, 1000)
    assert {labels.count(synset) for synset in synsets[:20]} == {50}


def test_imagenet_tars_that_are_amiss(imagenet, tmp_path):
    train, validation = (imagenet / name for name in archives.IMAGENET)
    whole = train.read_bytes()
    train.write_bytes(whole[: len(whole) // 2])
    refused(f"--source={imagenet}: cannot be read", imagenet, tmp_path / "out")
    tar_of([("n00000000.tar", b"")], train)
    refused(r"n00000000\.tar: no synset of ILSVRC-2012", imagenet, tmp_path / "out")
    train.write_bytes(whole)
    tar_of([("ILSVRC2012_val_00050001.JPEG", b"")], validation)
    refused("00050001.JPEG: no validation image of ILSVRC-2012", imagenet, tmp_path / "out")
    validation.unlink()
    refused(r"ILSVRC2012_img_val\.tar: is missing", imagenet, tmp_path / "out")


def test_a_listed_image_takes_few_bytes_and_is_made_when_it_is_asked_for(tmp_path):
    """1,281,167 of them as objects took 0.7 GB."""
    labels, images = {"n01751748": 0, "n02105855": 1}, 3000
    inner = {}
    for synset in labels:
        file = tmp_path / f"{synset}.tar"
        tar_of([(f"{synset}_{number}.JPEG", b"%d" % number) for number in range(images)], file)
        inner[file.name] = file.read_bytes()
    tar_of(inner.items(), tmp_path / archives.IMAGENET[0])
    tar_of(
        [("ILSVRC2012_val_00000002.JPEG", b"v"), ("ILSVRC2012_val_00000003.JPEG", b"w")],
        tmp_path / archives.IMAGENET[1],
    )
    archives._lines("validation_labels.txt")
    tracemalloc.start()
    source = archives.imagenet(tmp_path)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    train, validation = source.splits["train"], source.splits["validation"]
    assert taken / len(train) < 200
    assert len(train) == 2 * images
    part = train[images - 1 : images + 5][:2]
    assert [(of.name, of.label, of.read()) for of in part] == [
        ("n01751748/n01751748_2999.JPEG", 0, b"2999"),
        ("n02105855/n02105855_0.JPEG", 1, b"0"),
    ]
    sent = pickle.loads(pickle.dumps(part))
    assert type(sent) is list
    assert [(of.path, of.read()) for of in sent] == [(of.path, of.read()) for of in part]
    assert [(of.name, of.label, of.read()) for of in validation] == [("ILSVRC2012_val_00000003.JPEG", 1, b"w")]
    assert train[-1].name == "n02105855/n02105855_2999.JPEG"


# CIFAR-10

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar_batches(images=4):
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 10, images).tolist(), rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8))
        for name in (*cifar10.TRAIN, cifar10.TEST)
    }


def cifar_files(kind, batches):
    """As the two archives hold them: planes of red, green and blue."""
    files = {"readme.html": b"about"}
    for name, (labels, images) in batches.items():
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        if kind == "binary":
            files[f"{name}.bin"] = np.concatenate([np.array(labels, np.uint8)[:, None], planes], 1).tobytes()
        else:
            files[name] = pickle.dumps({b"batch_label": b"one", b"labels": labels, b"data": planes}, protocol=2)
    if kind == "binary":
        files["batches.meta.txt"] = "\n".join(NAMES).encode() + b"\n\n"
    else:
        files["batches.meta"] = pickle.dumps({b"label_names": [name.encode() for name in NAMES]}, protocol=2)
    return files


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_cifar10_comes_back_pixel_for_pixel(tmp_path, kind, form):
    batches = cifar_batches()
    # Every class at least once.
    batches["data_batch_1"] = (list(range(10)), np.random.default_rng(1).integers(0, 256, (10, 32, 32, 3), np.uint8))
    files = cifar_files(kind, batches)
    if form == "archive":
        source = tmp_path / f"cifar-10-{kind}.tar.gz"
        tar_of([(f"cifar-10-batches/{name}", data) for name, data in files.items()], source, "w:gz")
    else:
        source = tmp_path / "cifar"
        source.mkdir()
        for name, data in files.items():
            (source / name).write_bytes(data)
    dataset = run(source, tmp_path / "out")
    assert (dataset.class_names, dataset.size, dataset.encoding) == (NAMES, 32, "raw")
    for split, names in (("train", cifar10.TRAIN), ("validation", [cifar10.TEST])):
        labels = [label for name in names for label in batches[name][0]]
        images = np.concatenate([batches[name][1] for name in names])
        stored = list(tfds.builder_from_directory(tmp_path / "out").as_data_source(split=split))
        assert [example["label"] for example in stored] == labels
        np.testing.assert_array_equal(np.stack([example["image"] for example in stored]), images)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data_batch_3", pickle.dumps(Evil()), "a pickle that asks for posix.system"),
        ("data_batch_3", pickle.dumps([1]), "a pickle of something else"),
        ("data_batch_3", b"\x80\x02}q", "a damaged pickle"),
        ("data_batch_3", pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}), "other arrays than"),
        ("data_batch_3", None, "data_batch_3 is missing"),
    ],
)
def test_a_cifar10_archive_that_is_amiss(tmp_path, monkeypatch, name, data, message):
    monkeypatch.chdir(tmp_path)
    files = {**cifar_files("python", cifar_batches()), name: data}
    source = tmp_path / "cifar-10-python.tar.gz"
    tar_of([(f"cifar/{name}", data) for name, data in files.items() if data is not None], source, "w:gz")
    refused(message, source, tmp_path / "out")
    assert not Path("evil").exists()


def test_a_cifar10_batch_that_is_not_whole(tmp_path):
    files = cifar_files("binary", cifar_batches())
    files["test_batch.bin"] = files["test_batch.bin"][:-1]
    tar_of(files.items(), tmp_path / "cifar-10-binary.tar.gz", "w:gz")
    refused(r"test_batch\.bin is not whole", tmp_path / "cifar-10-binary.tar.gz", tmp_path / "out")


# TFDS


def test_a_tfds_data_set_prepared_elsewhere(tmp_path):
    """Written by TFDS's own writer, with images of their own sizes, by a name and version."""
    from tensorflow_datasets.core import dataset_info, sequential_writer

    folder = tmp_path / "data" / "flowers" / "1.2.0"
    folder.mkdir(parents=True)
    features = {
        "image": tfds.features.Image(encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
    }
    identity = dataset_info.DatasetIdentity(
        name="flowers", version=tfds.core.Version("1.2.0"), data_dir=str(folder), module_name=__name__
    )
    writer = sequential_writer.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features)), 100,
        file_format="array_record",
    )  # fmt: skip
    writer.initialize_splits(["train", "test"])
    images = [picture(number % 2, number, 20 + number)[:18] for number in range(9)]
    examples = [{"image": encoded(Image.fromarray(p), "PNG"), "label": n % 2} for n, p in enumerate(images)]
    writer.add_examples({"train": examples[:6], "test": examples[6:]})
    writer.close_all()

    dataset = run("tfds:flowers", tmp_path / "out", size=16, data_dir=str(tmp_path / "data"))
    assert dataset.class_names == ("a", "b")
    labels = {split: [example["label"] for example in records] for split, records in dataset.splits.items()}
    assert labels == {"train": [0, 1] * 3, "validation": [0, 1, 0]}
    for example in tfds.builder_from_directory(tmp_path / "out").as_data_source(split="train"):
        assert example["image"].mean((0, 1)).argmax() == example["label"]
    refused(
        "--source=tfds:birds: no array_record data set of labelled images in",
        "tfds:birds", tmp_path / "none", data_dir=str(tmp_path / "data"),
    )  # fmt: skip


# What a pickle may ask for


def names_in(content):
    return cifar10._class_names(cifar10.unpickled(content))


class Made:
    """Pickled as the call of a function."""

    def __init__(self, function, arguments, state=None):
        self.of = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.of


def void(hidden):
    """A type of NumPy whose layout says that bytes are objects."""
    return Made(np.dtype, ("V8", False, True), (3, "|", None, ("f",), {"f": (hidden, 0)}, 8, 1, 0))


RECONSTRUCT = np.empty(0).__reduce__()[0]
U1 = Made(np.dtype, ("u1", False, True), (3, "|", None, None, None, -1, -1, 0))
OBJECT = np.dtype("O")


def array(shape, kind, content, by_columns=False):
    return Made(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, kind, by_columns, content))


NESTED = functools.reduce(lambda inside, _: (inside, inside), range(20), ())  # a few bytes; its text has 4 MB
HOSTILE = {
    "objects hidden in bytes": Made(np.ndarray, ((1,), void(OBJECT), b"\x41" * 8)),
    "objects": array((1,), OBJECT, [1]),
    "a layout with steps": Made(np.ndarray, ((1, 3072), U1, b"\0" * 3072, 0, (-3072, 1))),
    "more than there is": array((2, 3072), U1, b"\0"),
    "a negative shape": array((-1, -3072), U1, b"\0" * 3072),
    "a huge shape": array((2**62, 3072), U1, b""),
    "by columns": array((1, 3072), U1, b"\0" * 3072, True),
    "content that is none": array((1, 3072), U1, 5),
    "another type": array((1, 3072), np.dtype("i8"), b"\0" * 3072),
    "a type in a type": Made(np.dtype, (Made(np.dtype, ("u1",)), False, True)),
    "a state that is none": Made(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1,)),
    "another codec": Made(__import__("codecs").encode, ("abcd", "zlib")),
    "a codec that is a long text": Made(__import__("codecs").encode, ("abcd", NESTED)),
    "a type that is a long text": Made(np.dtype, (NESTED, False, True)),
    "a shape of a list": array(([0], 2**20), U1, b"\0"),
    "a shape of long numbers": array((1 << 10**5, 1 << 10**5), U1, b"\0"),
    "code": Made(eval, ("open('ran', 'w')",)),
    "a class of ours": Path("."),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_make_nothing_but_what_cifar10_has(tmp_path, monkeypatch, kind, protocol):
    monkeypatch.chdir(tmp_path)
    for key in (b"data", b"label_names"):
        content = pickle.dumps({key: HOSTILE[kind], b"labels": [0]}, protocol)
        tracemalloc.start()
        with pytest.raises((pickle.UnpicklingError, ValueError)) as caught:
            _ = cifar10._as_binary(content, tmp_path / "batch") if key == b"data" else names_in(content)
        assert tracemalloc.get_traced_memory()[1] < 1e6
        tracemalloc.stop()
        assert len(str(caught.value)) < 250
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", b"(" * 100_000 + b"l.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x82\x01.", b"P1\n.", b"\x80\xff.", b"N.", b"}}R.",
        b"c__builtin__\neval\n(S'1'\ntR.", b"\x80\x02cnumpy\ndtype\n}b.", b"I" + b"9" * 5000 + b"\n.", b"",
    ],
)  # fmt: skip
def test_damaged_pickles_are_one_line(content):
    with pytest.raises(pickle.UnpicklingError) as caught:
        cifar10.unpickled(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\x80\x02)\x81.", b"(ios\nsystem\n.", b"I1\n.", b"\xff."])
def test_an_instruction_that_builds_no_data_is_called_so(content):
    with pytest.raises(pickle.UnpicklingError, match=r"^a damaged pickle: an instruction that builds no data$"):
        cifar10.unpickled(content)


def test_a_number_in_a_pickle_gives_out_no_memory():
    """The one in C makes a list as long as the largest number of a place, here of 34 GB."""
    assert cifar10.unpickled(b"\x80\x02}r\xff\xff\xff\xff.") == {}


@pytest.mark.parametrize("fits", [True, False])
def test_numbers_with_one_place_in_a_dict_are_no_keys(fits):
    """Multiples of 2⁶¹ - 1 have one hash, and a dict of n of them takes n² steps; of 64 bits there are four."""
    numbers = range(0, 2**63 if fits else 2**64, 2**61 - 1)
    content = pickle.dumps(dict.fromkeys(numbers, 0), 2)
    if fits:
        assert len(cifar10.unpickled(content)) == len(numbers)
    else:
        with pytest.raises(pickle.UnpicklingError, match="puts a int into a dict"):
            cifar10.unpickled(content)


@pytest.mark.parametrize("labels", [[0.0], ["0"], [256], [-1], [True], (0,), [[0]], 0, None, [2**80], {0: 0}])
def test_labels_that_are_none(tmp_path, labels):
    content = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": labels}, 2)
    with pytest.raises(ValueError, match="batch holds other arrays than CIFAR-10's"):
        cifar10._as_binary(content, tmp_path / "batch")


@pytest.mark.parametrize("names", [None, [], b"ab", ["a"], [b"a", 5], {b"a": 1}])
def test_class_names_that_are_none(names):
    with pytest.raises(ValueError, match="has no label_names"):
        cifar10._class_names(cifar10.unpickled(pickle.dumps({b"label_names": names}, 2)))
