import io
import os
import tarfile

import numpy as np
import pytest
from conftest import SHARED, picture
from PIL import Image

from alexnet_jax import prepare
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.data.images import upright_rgb
from alexnet_jax.options import InputError


def run(source, output, **options):
    sources = tuple(map(str, source)) if isinstance(source, list) else (str(source),)
    prepare.prepare(prepare.Options(source=sources, output=str(output), size=16, **options))
    dataset = open_dataset(str(output))
    names = {
        split: [(dataset.class_names[example["label"]], example["name"]) for example in records]
        for split, records in dataset.splits.items()
    }
    return dataset, names


def save(path, label=0, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(label, seed)).save(path)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


# Layouts


def test_a_folder_of_class_folders_is_split_by_seed(photo_folder, tmp_path):
    dataset, names = run(photo_folder, tmp_path / "out", validation_fraction=0.3)
    assert dataset.class_names == ("cat", "dog")
    for split, count in (("train", 7), ("validation", 3)):
        assert [label for label, _ in names[split]] == ["cat"] * count + ["dog"] * count
        assert all(name.startswith(label) for label, name in names[split])
    assert len({*names["train"], *names["validation"]}) == 20
    _, again = run(photo_folder, tmp_path / "again", validation_fraction=0.3)
    _, other = run(photo_folder, tmp_path / "other", validation_fraction=0.3, seed=1)
    assert names == again
    assert names != other


@pytest.mark.parametrize("folder", ["val", "valid", "Validation", "test"])
def test_train_and_validation_folders(tmp_path, folder):
    for label, name in enumerate(("cat", "dog")):
        save(tmp_path / "set" / "train" / name / "1.png", label)
        save(tmp_path / "set" / folder / name / "2.png", label, 1)
    _, names = run(tmp_path / "set", tmp_path / "out")
    assert names == {
        "train": [("cat", "train/cat/1.png"), ("dog", "train/dog/1.png")],
        "validation": [("cat", f"{folder}/cat/2.png"), ("dog", f"{folder}/dog/2.png")],
    }


def test_validation_and_test_folders_stay_apart(tmp_path):
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / "set" / split / name / "1.png")
    _, names = run(tmp_path / "set", tmp_path / "out")
    assert {split: len(files) for split, files in names.items()} == {"train": 2, "validation": 2, "test": 2}


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz")])
def test_a_tar_file_gives_what_its_folder_gives(photo_folder, tmp_path, suffix, mode):
    archive = tmp_path / f"photos{suffix}"
    with tarfile.open(archive, mode) as tar:
        tar.add(photo_folder, "photos")  # in a folder around it all
    _, of_folder = run(photo_folder, tmp_path / "1")
    dataset, of_tar = run(archive, tmp_path / "2")
    assert {split: sorted(files) for split, files in of_tar.items()} == {
        split: sorted(files) for split, files in of_folder.items()
    }
    assert dataset.class_names == ("cat", "dog")


def test_a_tar_of_the_folder_itself(photo_folder, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photo_folder, ".")
    dataset, _ = run(tmp_path / "photos.tar", tmp_path / "out")
    assert dataset.class_names == ("cat", "dog")


def test_a_folder_around_the_classes_may_hold_other_files(photo_folder, tmp_path):
    (photo_folder / "README.txt").write_text("about")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photo_folder, "photos")
    dataset, _ = run(tmp_path / "photos.tar", tmp_path / "out")
    assert dataset.class_names == ("cat", "dog")


def test_images_in_folders_below_their_class(photo_folder, tmp_path):
    (photo_folder / "cat" / "indoor").mkdir()
    (photo_folder / "cat" / "0.jpg").rename(photo_folder / "cat" / "indoor" / "0.jpg")
    dataset, names = run(photo_folder, tmp_path / "out")
    assert dataset.class_names == ("cat", "dog")
    assert sum(map(len, names.values())) == 20


def test_a_class_folder_that_is_a_link(photo_folder, tmp_path):
    (photo_folder / "dog").rename(tmp_path / "elsewhere")
    (photo_folder / "dog").symlink_to(tmp_path / "elsewhere")
    _, names = run(photo_folder, tmp_path / "out")
    assert sum(map(len, names.values())) == 20


def test_names_of_any_bytes(photo_folder, tmp_path):
    (photo_folder / "cat" / "0.jpg").rename(photo_folder / "cat" / os.fsdecode(b"caf\xe9 \xc3\xbc.jpg"))
    _, names = run(photo_folder, tmp_path / "out")
    assert "cat/caf? ü.jpg" in [name for files in names.values() for _, name in files]


def test_several_tar_files_are_one_source(tmp_path):
    archives = []
    for number, split in enumerate(("train", "train", "test")):
        for name in ("cat", "dog"):
            save(tmp_path / str(number) / split / name / f"{number}.png")
        archives.append(tmp_path / f"{number}.tar")
        with tarfile.open(archives[-1], "w") as tar:
            tar.add(tmp_path / str(number) / split, split)
    _, names = run(archives, tmp_path / "out")
    assert [name for _, name in names["train"]] == [
        "train/cat/0.png", "train/dog/0.png", "train/cat/1.png", "train/dog/1.png"
    ]  # fmt: skip
    assert len(names["validation"]) == 2


def test_names_in_a_tar_reach_no_file_system(photo_folder, tmp_path):
    """Names with "..", absolute ones, links out of the tar: read as what lies in the tar, or not at all."""
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for label in ("cat", "dog"):
            for number, name in enumerate(("../../{}/a.png", "/{}/b.png", "{}/../{}/c.png", "{}/d.png")):
                data = encoded(Image.fromarray(picture(0, number)), "PNG")
                info = tarfile.TarInfo(name.format(label, label))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for kind, target in ((tarfile.SYMTYPE, "d.png"), (tarfile.LNKTYPE, f"{label}/d.png"),
                                 (tarfile.SYMTYPE, "/etc/passwd")):  # fmt: skip
                info = tarfile.TarInfo(f"{label}/{kind!r}{target.replace('/', '')}")
                info.type, info.linkname = kind, target
                tar.addfile(info)
    refused("passwd: cannot be read .a link to nothing in the archive", tmp_path / "photos.tar", tmp_path / "out")
    _, names = run(tmp_path / "photos.tar", tmp_path / "out", on_error="skip")
    # "cat/../cat/c.png" is told apart from its class's own folder, not resolved. A hard link is a file, as in a folder.
    assert sum(map(len, names.values())) == 10
    assert {label for files in names.values() for label, _ in files} == {"cat", "dog"}


def test_unicode_and_spaces_in_names(tmp_path):
    for name in ("Katze (süß)", "犬 🐕", "plain"):
        for index in range(2):
            save(tmp_path / "my photos" / name / f"photo {index} é.png", index)
    dataset, names = run(tmp_path / "my photos", tmp_path / "out put")
    assert set(dataset.class_names) == {"Katze (süß)", "犬 🐕", "plain"}
    assert ("犬 🐕", "犬 🐕/photo 1 é.png") in names["train"] + names["validation"]


@pytest.mark.parametrize("name", ["cat ", " cat", "c\nat"])
def test_class_names_that_cannot_be_kept(photo_folder, tmp_path, name):
    (photo_folder / "cat").rename(photo_folder / name)
    refused("class folder '.*': its name must not begin", photo_folder, tmp_path / "out")


@pytest.mark.slow
def test_ten_thousand_classes(tmp_path):
    data = encoded(Image.fromarray(picture(0, 0)[:16, :16]), "PNG")
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        for number in range(10_000):
            for split in ("train", "val")[: 2 if number % 100 == 0 else 1]:
                info = tarfile.TarInfo(f"{split}/{number:05}/1.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    dataset, names = run(tmp_path / "many.tar", tmp_path / "out")
    assert len(dataset.class_names) == len(names["train"]) == 10_000
    assert [label for label, _ in names["validation"]] == [f"{number:05}" for number in range(0, 10_000, 100)]


def test_what_systems_leave_behind_is_ignored(photo_folder, tmp_path, capsys):
    for junk in (".DS_Store", "cat/Thumbs.db", "__MACOSX/cat/1.jpg", "README.txt"):
        (photo_folder / junk).parent.mkdir(parents=True, exist_ok=True)
        (photo_folder / junk).write_text("junk")
    dataset, names = run(photo_folder, tmp_path / "out")
    assert dataset.class_names == ("cat", "dog")
    assert sum(map(len, names.values())) == 20
    assert "ignored 1 files that are in no class folder, such as" in capsys.readouterr().out


# Images


def test_the_shorter_side_is_scaled_and_the_centre_kept():
    """§2: on a ramp, so that each pixel says where it was."""
    ramp = np.broadcast_to(np.arange(0, 256, 1, dtype=np.uint8)[None, :, None], (64, 256, 3))
    out = upright_rgb(encoded(Image.fromarray(ramp), "PNG"), 32)
    assert out.shape == (32, 32, 3)
    # The central 64 columns of 256, two to one: 96.5, 98.5, …
    np.testing.assert_allclose(out[16, 2:-2, 0], 96.5 + 2 * np.arange(2, 30), atol=1)


def test_scaling_down_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    out = upright_rgb(encoded(Image.fromarray(stripes), "PNG"), 16)
    assert np.abs(out[:, 2:-2].astype(int) - 127).max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation):
    """A picture whose red corner is upper left when seen upright, stored in all eight ways."""
    upright = np.full((32, 32, 3), 40, np.uint8)
    upright[:12, :12] = (230, 20, 20)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = upright_rgb(encoded(Image.fromarray(stored.copy()), "JPEG", exif=exif, quality=95), 32)
    assert out[4, 4, 0] > 200
    assert out[4, 27, 0] < 80
    assert out[27, 4, 0] < 80
    assert out[27, 27, 0] < 80


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("L", (40, 30), 90), "JPEG", (90, 90, 90)),
        (Image.new("LA", (40, 30), (90, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (40, 30), (200, 100, 50, 255)), "PNG", (200, 100, 50)),
        (Image.new("RGBA", (40, 30), (200, 100, 50, 0)), "PNG", (255, 255, 255)),
        (Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("I;16", (40, 30), 257 * 90), "PNG", (90, 90, 90)),
        (Image.new("1", (40, 30), 1), "PNG", (255, 255, 255)),
        (Image.new("RGB", (40, 30), (10, 20, 30)).quantize(4), "GIF", (10, 20, 30)),
        (Image.new("RGB", (3, 2), (10, 20, 30)), "BMP", (10, 20, 30)),
    ],
    ids=["grey", "clear grey", "opaque", "clear", "cmyk", "16 bits", "1 bit", "palette", "smaller than the size"],
)
def test_every_kind_of_image_becomes_rgb(image, format, expected):
    out = upright_rgb(encoded(image, format), 16)
    assert (out.shape, out.dtype) == ((16, 16, 3), np.uint8)
    np.testing.assert_allclose(out.reshape(-1, 3), np.broadcast_to(expected, (256, 3)), atol=3)


ORIGINALS = SHARED / "data" / "photos-original-size.tar"


@pytest.mark.skipif(not ORIGINALS.exists(), reason="no photographs of original size beside the checkout")
def test_photographs_of_original_size(tmp_path):
    """59 of ImageNet: varied sizes, greyscale, some turned by EXIF; the class is in the name."""
    with tarfile.open(ORIGINALS) as tar:
        for member in tar.getmembers():
            folder = tmp_path / "set" / ("first", "second")[member.name < "n02"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / member.name).write_bytes(tar.extractfile(member).read())
    dataset, names = run(tmp_path / "set", tmp_path / "out")
    assert sum(map(len, names.values())) == 59
    for split in dataset.splits.values():
        for example in split:
            assert np.asarray(Image.open(io.BytesIO(example["image"]))).shape == (16, 16, 3)


# Bad input: one line, and nothing is left at the output


def refused(message, *arguments, **options):
    with pytest.raises(InputError, match=message) as caught:
        run(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(arguments[1])


BAD_FILES = {
    "empty": (b"", "is empty"),
    "bomb": (encoded(Image.new("1", (10_000, 10_000)), "PNG"), "has more than 89,478,485 pixels"),
    "no image": (b"this is no image", "is not an image of a known format"),
    "truncated": (encoded(Image.fromarray(picture(0, 0)), "JPEG")[:-300], "is damaged"),
    "damaged": (encoded(Image.fromarray(picture(0, 0)), "PNG")[:2000], "is damaged"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_image_stops_or_is_skipped_and_listed(photo_folder, tmp_path, capsys, kind):
    data, message = BAD_FILES[kind]
    (photo_folder / "cat" / "bad.jpg").write_bytes(data)
    refused(f"cat/bad.jpg: {message}", photo_folder, tmp_path / "out")
    _, names = run(photo_folder, tmp_path / "out", on_error="skip")
    assert sum(map(len, names.values())) == 20
    out = capsys.readouterr().out
    assert "skipped 1 files:" in out
    assert f"cat/bad.jpg: {message}" in out


@pytest.mark.parametrize("junk", [None, ".DS_Store", "Thumbs.db"])
def test_a_class_folder_without_images(photo_folder, tmp_path, junk):
    (photo_folder / "empty").mkdir()
    if junk:
        (photo_folder / "empty" / junk).write_text("junk")
    refused("class folder 'empty' of the train part has no images", photo_folder, tmp_path / "out")


def test_a_class_of_bad_images_only(photo_folder, tmp_path):
    (photo_folder / "bad").mkdir()
    for index in range(5):
        (photo_folder / "bad" / f"{index}.jpg").write_bytes(b"")
    refused("class 'bad' has no readable image", photo_folder, tmp_path / "out", on_error="skip")


def test_an_empty_source(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("empty: is empty", tmp_path / "empty", tmp_path / "out")


def test_a_missing_source(tmp_path):
    refused("there is no such file or folder", tmp_path / "missing", tmp_path / "out")


def test_a_file_that_is_no_tar(tmp_path):
    (tmp_path / "file.tar").write_text("no tar")
    refused("file.tar: cannot be read as a folder or tar file", tmp_path / "file.tar", tmp_path / "out")


def test_images_beside_the_training_part(tmp_path):
    for path in ("train/cat", "train/dog", "evaluation/cat", "evaluation/dog"):
        save(tmp_path / "set" / path / "1.png")
    refused("evaluation/cat/1.png: beside train/ there may only be", tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_truncated_tar(photo_folder, tmp_path, mode):
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, mode) as tar:
        tar.add(photo_folder, "photos")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    refused("photos.tar: cannot be read", archive, tmp_path / "out")


def test_one_class_only(tmp_path):
    save(tmp_path / "set" / "cat" / "1.png")
    refused("one class only, 'cat'", tmp_path / "set", tmp_path / "out")


def test_images_without_class_folders(tmp_path):
    save(tmp_path / "set" / "1.png")
    refused("no class folders", tmp_path / "set", tmp_path / "out")


def test_too_few_images_to_split(tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / "set" / name / "1.png")
    refused("class 'cat' has 1 images: too few", tmp_path / "set", tmp_path / "out")


def test_a_validation_class_that_is_not_trained(tmp_path):
    for path in ("train/cat", "train/dog", "val/cat", "val/cow"):
        save(tmp_path / "set" / path / "1.png")
    refused("class 'cow' is in the validation part and not in the training part", tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "--on_error=ignore: must be stop or skip"),
        ({"encoding": "png"}, "--encoding=png: must be jpeg or raw"),
        ({"validation_fraction": 1.0}, "--validation_fraction=1.0: must be below 1"),
        ({"validation_fraction": 0.0}, "--validation_fraction=0.0: must be above 0"),
        ({"workers": -1}, "--workers=-1: must be at least 0"),
        ({"seed": -1}, "--seed=-1: must be at least 0"),
    ],
)
def test_impossible_options(photo_folder, tmp_path, options, message):
    refused(message, photo_folder, tmp_path / "out", **options)


def test_stored_images_are_the_pictures(tmp_path):
    for label, name in enumerate(("red", "green")):
        for index in range(3):
            save(tmp_path / "set" / name / f"{index}.png", label, index)
    dataset, _ = run(tmp_path / "set", tmp_path / "out")
    for split in dataset.splits.values():
        for example in split:
            name = dataset.class_names[example["label"]]
            channel = ("red", "green").index(name)
            assert np.asarray(Image.open(io.BytesIO(example["image"]))).mean((0, 1)).argmax() == channel


def test_an_impossible_size():
    with pytest.raises(InputError, match="--size=7: must be at least 8, or 0"):
        prepare.Options(source=("photos",), output="out", size=7)


def test_large_pictures_are_allowed_by_a_flag(photo_folder, tmp_path):
    Image.new("RGB", (60, 60)).save(photo_folder / "cat" / "large.png")
    refused("cat/large.png: has more than 3,000 pixels; --max_pixels allows more; --on_error=skip", photo_folder,
            tmp_path / "out", max_pixels=3000)  # fmt: skip
    _, names = run(photo_folder, tmp_path / "out", max_pixels=3600)
    assert sum(map(len, names.values())) == 21
    with pytest.raises(InputError, match="--max_pixels=0: must be at least 1"):
        prepare.Options(source=("photos",), output="out", max_pixels=0)
