"""Folders and tars as people have them: layouts, links, what systems leave, and what is no file at all."""

import contextlib
import io
import os
import random
import tarfile
import unicodedata

import pytest
from conftest import picture
from PIL import Image

from alexnet_jax import predict, prepare
from alexnet_jax.data import tars
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.data.layouts import split_of
from alexnet_jax.options import InputError


def png(number=0):
    file = io.BytesIO()
    Image.fromarray(picture(number % 3, number, 20)).save(file, "PNG")
    return file.getvalue()


def save(root, *paths):
    """Pictures at these paths, each another one; a path that ends in / is an empty folder."""
    for number, path in enumerate(paths):
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
            continue
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(number))
    return root


def run(source, output, **options):
    """{split: names of its images}, and the classes."""
    sources = tuple(map(str, source)) if isinstance(source, list) else (str(source),)
    prepare.prepare(prepare.Options(source=sources, output=str(output), size=16, **options))
    dataset = open_dataset(output)
    return {split: [of["name"] for of in records] for split, records in dataset.splits.items()}, dataset.class_names


def refused(message, source, output, **options):
    with pytest.raises(InputError, match=message) as caught:
        run(source, output, **options)
    assert "\n" not in str(caught.value)
    assert not output.exists()


# Layouts


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("training_set", "train"), ("TRAIN-SET", "train"),
        ("train data", "train"), ("val", "validation"), ("valid", "validation"), ("validation_set", "validation"),
        ("dev", "validation"), ("Testing", "test"), ("test_set", "test"), ("testset", "test"), ("trains", None),
        ("contest", None), ("testimony", None), ("training camp", None), ("value", None), ("", None),
    ],
)  # fmt: skip
def test_names_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "other"),
    [("Training", "Testing"), ("training_set", "test_set"), ("train", "valid"), ("TRAIN", "dev"), ("train", "test")],
)
@pytest.mark.parametrize("around", ["", "archive/", "download/data/"])
def test_layouts_that_people_download(tmp_path, train, other, around):
    paths = [f"{around}{split}/{name}/{split}.png" for split in (train, other) for name in ("cat", "dog")]
    names, classes = run(save(tmp_path / "set", *paths), tmp_path / "out")
    assert classes == ("cat", "dog")
    assert names == {
        "train": [f"{train}/cat/{train}.png", f"{train}/dog/{train}.png"],
        "validation": [f"{other}/cat/{other}.png", f"{other}/dog/{other}.png"],
    }


@pytest.mark.parametrize("name", ["imagenette2", "imagenette2-320", "imagenette2-160"])
def test_imagenettes_own_archive_and_the_names_of_its_classes(tmp_path, name, capsys):
    synsets = ("n01440764", "n02102040", "n03000684")
    files = [f"{split}/{synset}/{synset}_{number}.JPEG" for split in ("train", "val") for synset in synsets
             for number in (1, 2)]  # fmt: skip
    save(tmp_path / name, *files)
    (tmp_path / name / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    (tmp_path / name / ".DS_Store").write_bytes(b"\0")
    with tarfile.open(tmp_path / f"{name}.tgz", "w:gz") as archive:
        archive.add(tmp_path / name, name)
    splits, classes = run(tmp_path / f"{name}.tgz", tmp_path / "out")
    assert classes == ("tench", "English springer", "chain saw")
    assert sorted(splits["train"] + splits["validation"]) == sorted(files)
    assert "ignored 1 files that are in no class folder" in capsys.readouterr().out
    assert not list(tmp_path.glob("out.*"))  # what was unpacked


def test_only_identifiers_that_all_are_of_imagenet_become_names(tmp_path):
    save(tmp_path / "data", "n01440764/1.png", "n01440764/2.png", "mine/1.png", "mine/2.png")
    assert run(tmp_path / "data", tmp_path / "out")[1] == ("mine", "n01440764")


def test_a_split_in_a_folder_of_its_own_name(tmp_path):
    paths = [f"{split}/{split}/{name}/1.png" for split in ("training_set", "test_set") for name in ("cat", "dog")]
    names, classes = run(save(tmp_path / "set", *paths), tmp_path / "out")
    assert classes == ("cat", "dog")
    assert names["validation"] == ["test_set/test_set/cat/1.png", "test_set/test_set/dog/1.png"]


def test_a_class_may_be_named_as_a_split_is(tmp_path):
    paths = [f"{split}/{name}/1.png" for split in ("train", "val") for name in ("bus", "train")]
    _, classes = run(save(tmp_path / "set", *paths), tmp_path / "out")
    assert classes == ("bus", "train")


TRAIN = ("train/cat/1.png", "train/cat/2.png", "train/dog/3.png", "train/dog/4.png")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["val/ILSVRC2012_val_1.JPEG"], "^val/, the validation part, has no class folders, but files .*val_1.JPEG"),
        (["val/"], "^val/, the validation part, has no class folders, but nothing in it"),
        (["Valid/labels.csv"], "^Valid/, the validation part, has no class folders"),
        (["test/1.png"], "^test/, the test part, has no class folders, but files .*test/1.png"),
        (["test/"], "^test/, the test part, has no class folders, but nothing in it"),
        (["val/cat/1.png", "valid/dog/1.png"], "two folders for one validation part: 'val' and 'valid'"),
        (["val/cat/"], "class folder 'cat' of the validation part has no images; --on_error=skip leaves it out"),
        (["val/cow/1.png"], "class 'cow' is in the validation part and not in the training part"),
        (["holdout/cat/1.png"], "holdout/cat/1.png: beside train/ there may only be"),
    ],
)
def test_layouts_that_are_refused_and_named(tmp_path, more, message):
    refused(message, save(tmp_path / "set", *TRAIN, *more), tmp_path / "out")


@pytest.mark.parametrize(
    ("tops", "named"),
    [
        (("seg_train", "seg_test", "seg_pred"), "seg_train/ and seg_test/"),
        (("trainA", "trainB", "testA", "testB"), "trainA/ and testA/"),
        (("train2017", "val2017"), "train2017/ and val2017/"),
        (("1_Train", "2_Valid"), "1_Train/ and 2_Valid/"),
        (("images.train", "images.test"), "images.train/ and images.test/"),
    ],
)
@pytest.mark.parametrize("inside", ["", "cat/", "deep/cat/"])
def test_folders_that_look_like_parts_are_no_classes(tmp_path, tops, named, inside):
    paths = [f"{top}/{inside}{number}.png" for top in tops for number in range(3)]
    source = save(tmp_path / "set", *paths)
    refused(f"^({named}|{' and '.join(reversed(named.split(' and ')))}) look like parts", source, tmp_path / "out")


@pytest.mark.parametrize("deeper", ["", "deep/"])
def test_parts_in_the_folders_of_classes_are_not_mixed(tmp_path, deeper):
    paths = [f"{name}/{part}/{deeper}{n}.png" for name in ("cat", "dog") for part in ("train", "test") for n in (1, 2)]
    refused(r"^cat/\w+/ and cat/\w+/ look like parts", save(tmp_path / "set", *paths), tmp_path / "out")


@pytest.mark.parametrize(
    "names",
    [
        ("contest", "testimony"), ("freight train", "car"), ("value", "training camp"), ("a", "b_test"),
        ("火车_train", "考试_test"),
    ],
)  # fmt: skip
def test_classes_that_only_sound_like_parts(tmp_path, names):
    paths = [f"{name}/{below}{number}.png" for name in names for below in ("", "test/") for number in range(2)]
    assert run(save(tmp_path / "set", *paths), tmp_path / "out")[1] == tuple(sorted(names))


@pytest.mark.parametrize("kind", ["folders", "tars"])
def test_several_sources_that_are_named_as_splits(tmp_path, kind):
    sources = []
    for part, number in (("train", 3), ("val", 1)):
        source = save(tmp_path / part, *(f"{name}/{part}{n}.png" for name in ("cat", "dog") for n in range(number)))
        if kind == "tars":
            with tarfile.open(source.with_suffix(".tar.gz"), "w:gz") as tar:
                tar.add(source, ".")
        sources.append(source if kind == "folders" else source.with_suffix(".tar.gz"))
    names, classes = run(sources, tmp_path / "out")
    assert (classes, {split: len(of) for split, of in names.items()}) == (("cat", "dog"), {"train": 6, "validation": 2})
    assert all("val/" in name for name in names["validation"])
    more = save(tmp_path / "more", "cat/9.png", "dog/9.png")
    refused("more/cat/9.png: beside train/ there may only be", [*sources, more], tmp_path / "again")


def test_flat_and_empty_training_parts(tmp_path):
    refused("^train/, the train part, has no class folders", save(tmp_path / "1", "train/1.png", "val/a/1.png"),
            tmp_path / "out")  # fmt: skip
    refused("no class folders of training images|the test part, has no", save(tmp_path / "2", "test/1.png"),
            tmp_path / "out")  # fmt: skip


def test_a_flat_test_part_beside_a_whole_validation_part_is_left_out_and_named(tmp_path, capsys):
    source = save(tmp_path / "set", *TRAIN, "val/cat/1.png", "val/dog/1.png", "test/1.png")
    names, _ = run(source, tmp_path / "out")
    assert set(names) == {"train", "validation"}
    assert "left out test/, which has no class folders" in capsys.readouterr().out


@pytest.mark.parametrize("empty", ["cow/", "cow/.DS_Store", "cow/Thumbs.db", "cow/@eaDir/1.png", "cow/deeper/"])
def test_an_empty_class_folder_is_named_or_left_out(tmp_path, capsys, empty):
    source = save(tmp_path / "set", *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)), empty)
    refused("class folder 'cow' of the train part has no images; --on_error=skip", source, tmp_path / "out")
    _, classes = run(source, tmp_path / "out", on_error="skip")
    assert classes == ("cat", "dog")
    assert "left out the class folder 'cow' of the train part, which has no images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "left",
    ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "#snapshot", "@Recycle"],
)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_folders_that_systems_leave(tmp_path, left, kind):
    paths = [f"set/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    source = save(tmp_path, *paths, f"set/{left}/1.png", f"set/cat/{left}/2.png", f"set/{left}/deep/3.png") / "set"
    if kind == "tar":
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            tar.add(source, "set")
        source = tmp_path / "set.tar"
    names, classes = run(source, tmp_path / "out")
    assert classes == ("cat", "dog")
    assert sum(map(len, names.values())) == 6


# Names


def test_class_names_of_two_unicode_forms_are_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != apart
    paths = ["train/dog/1.png", "val/dog/1.png", f"train/{composed}/1.png", f"val/{apart}/2.png"]
    names, classes = run(save(tmp_path / "set", *paths), tmp_path / "out")
    assert classes == (composed, "dog")
    assert len(names["validation"]) == 2
    save(tmp_path / "set", f"train/{apart}/3.png")
    refused(r"two folders for one class 'café': 'cafe\\u0301' and 'caf\\xe9'", tmp_path / "set", tmp_path / "again")


def test_class_names_that_only_look_alike_when_shown(tmp_path):
    for name in (b"caf\xe9", b"caf\xe8", b"dog"):
        (tmp_path / "set" / os.fsdecode(name)).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "set" / os.fsdecode(name) / f"{number}.png").write_bytes(png(number))
    refused(r"two folders for one class 'caf\?': 'caf\\udce8' and 'caf\\udce9'", tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\tb", "a\x85b", "a\u2028b", "a\rb"])
def test_class_names_that_break_a_line_or_steer_a_terminal(tmp_path, name):
    source = save(tmp_path / "set", f"{name}/1.png", f"{name}/2.png", "dog/1.png", "dog/2.png")
    refused(r"class folder '.*\\.*': its name must not", source, tmp_path / "out")


def test_a_comma_in_a_path(tmp_path):
    paths = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    source = save(tmp_path / "photos, 2020, best" / "a,b", *paths)
    other = save(tmp_path / "more", "cat/9.png", "dog/9.png")
    given = tuple(f"{source},{other}".split(","))  # as the flag's text is taken apart
    prepare.prepare(prepare.Options(source=given, output=str(tmp_path / "out,put"), size=16))
    assert sum(map(len, open_dataset(tmp_path / "out,put").splits.values())) == 8


def test_a_source_that_is_given_twice(tmp_path):
    source = save(tmp_path / "set", "cat/1.png", "dog/1.png")
    (tmp_path / "link").symlink_to("set")
    for other in (source, tmp_path / "link", source / "cat"):
        refused("is given twice, or lies in another source", [source, other], tmp_path / "out")


# Links, and what is no file


@pytest.fixture
def animals(tmp_path):
    return save(tmp_path / "set", *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)))


def count(names):
    return sum(map(len, names.values()))


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/up", ".."), ("cat/here", "."), ("cat/above", "../.."), ("bird", "dog"), ("zebra", "dog"),
        ("cat/0 again.png", "0.png"), ("cat/of a dog.png", "../dog/1.png"), ("cat/dogs", "../dog"),
    ],
)  # fmt: skip
def test_links_to_what_is_there_already_are_left_out_and_named(animals, tmp_path, capsys, link, target):
    (animals / link).symlink_to(target)
    names, classes = run(animals, tmp_path / "out")
    assert (count(names), classes) == (8, ("cat", "dog"))
    assert f"left out 1 links to what is in {animals} already, such as {animals / link}" in capsys.readouterr().out
    files = predict.files_of([str(animals)])
    assert len(files) == 8
    assert not any("set/bird" in file or "again" in file for file in files)


def test_links_to_elsewhere_are_followed_once(animals, tmp_path, capsys):
    save(tmp_path / "store", "deep/cow/1.png", "deep/cow/2.png", "one.png")
    (animals / "cow").symlink_to(tmp_path / "store" / "deep" / "cow")
    (animals / "cow again").symlink_to(tmp_path / "store" / "deep" / "cow")
    (animals / "cat" / "store").symlink_to(tmp_path / "store")
    (animals / "dog" / "one.png").symlink_to(tmp_path / "store" / "one.png")
    assert len(predict.files_of([str(animals)])) == 8 + 3
    names, _ = run(animals, tmp_path / "out", on_error="skip")
    assert count(names) == 8 + 3
    assert "left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("pipe", "cannot be read .no plain file"), ("device", "cannot be read .no plain file"),
        ("link to nothing", "No such file"), ("link to itself", "symbolic links"),
        ("endless", "holds 5,000,000,000,000"),
    ],
)  # fmt: skip
def test_what_is_no_file_is_named_or_skipped(animals, tmp_path, capsys, kind, problem):
    odd = animals / "cat" / "odd.png"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "endless":
        with odd.open("wb") as file:
            file.truncate(5 * 10**12)
    else:
        odd.symlink_to({"device": "/dev/zero", "link to nothing": "gone", "link to itself": "odd.png"}[kind])
    refused(f"odd.png: .*{problem}", animals, tmp_path / "out")
    names, _ = run(animals, tmp_path / "out", on_error="skip")
    assert count(names) == 8
    assert "odd.png: cannot be read" in capsys.readouterr().out


def test_a_source_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    refused("pipe.tar: is neither a folder nor a plain file", tmp_path / "pipe.tar", tmp_path / "out")


def test_predict_sees_a_folder_as_prepare_does(animals, tmp_path):
    for name in ("cat/Thumbs.db", "cat/.hidden.png", "__MACOSX/1.png", "dog/@eaDir/1.png"):
        save(animals, name)
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere", "9.png")
    (animals / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    names, _ = run(animals, tmp_path / "out")
    files = predict.files_of([str(animals)])
    assert len(files) == 9
    assert sorted(os.path.relpath(file, animals) for file in files) == sorted(
        name for of in names.values() for name in of
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "Thumbs.db").touch()
    with pytest.raises(InputError, match="empty: there is no file in it"):
        predict.files_of([str(animals), str(tmp_path / "empty")])


# Tars


def tar_of(file, *members, format=tarfile.PAX_FORMAT):
    """Of (name, content or what is changed of its header)."""
    with tarfile.open(file, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for field, value in content.items():
                    setattr(info, field, value)
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file


USUAL = tuple((f"{name}/{number}.png", png(number)) for name in ("cat", "dog") for number in range(4))


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        (("cat/z.png", {"type": tarfile.SYMTYPE, "linkname": "z.png"}), "a link to nothing in the archive"),
        (("cat/z.png", {"type": tarfile.LNKTYPE, "linkname": "cat/z.png"}), "a link to nothing in the archive"),
        (("cat/z.png", {"type": tarfile.SYMTYPE, "linkname": "../../../etc/passwd"}), "a link to nothing"),
        (("cat/z.png", {"type": tarfile.SYMTYPE, "linkname": "/cat/1.png"}), "a link to nothing"),
        (("cat/z.png", {"type": tarfile.FIFOTYPE}), "neither a file nor a folder"),
        (("cat/z.png", {"type": tarfile.CHRTYPE}), "neither a file nor a folder"),
    ],
)
def test_odd_members_of_a_tar_are_named_or_skipped(tmp_path, odd, problem):
    source = tar_of(tmp_path / "t.tar", *USUAL, odd)
    refused(rf"cat/z\.png: cannot be read \({problem}", source, tmp_path / "out")
    names, _ = run(source, tmp_path / "out", on_error="skip")
    assert count(names) == 8


def test_links_in_a_circle_in_a_tar(tmp_path):
    circle = [(f"cat/z{n}.png", {"type": tarfile.SYMTYPE, "linkname": f"z{(n + 1) % 5000}.png"}) for n in range(5000)]
    found = dict(tars.members(tar_of(tmp_path / "t.tar", *circle)))
    assert found == dict.fromkeys((name for name, _ in circle), "a link to nothing in the archive")


def test_links_in_a_tar_to_what_is_in_it(tmp_path, capsys):
    links = [("cat/again.png", {"type": tarfile.SYMTYPE, "linkname": "0.png"}),
             ("dog/cat.png", {"type": tarfile.SYMTYPE, "linkname": "../cat/0.png"}),
             ("dog/hard.png", {"type": tarfile.LNKTYPE, "linkname": "cat/1.png"})]  # fmt: skip
    names, _ = run(tar_of(tmp_path / "t.tar", *links[:2], *USUAL, links[2]), tmp_path / "out")
    assert count(names) == 9  # a hard link is a file of its own, as in a folder
    assert "left out 2 links to what is in" in capsys.readouterr().out


def test_names_in_a_tar_lead_where_they_would_lead_on_a_disk(tmp_path):
    more = [("./cat/0.png", png(1)), ("/cat/1.png", png(2)), ("cat/../dog/9.png", png(3)), ("../../dog/0.png", png(4))]
    names, classes = run(tar_of(tmp_path / "t.tar", *USUAL, *more), tmp_path / "out")
    assert (count(names), classes) == (9, ("cat", "dog"))
    assert "dog/9.png" in [name for of in names.values() for name in of]


def test_of_members_of_one_name_the_last_counts(tmp_path):
    source = tar_of(tmp_path / "t.tar", ("cat/0.png", b"an older one that is no picture"), *USUAL)
    names, _ = run(source, tmp_path / "out")
    assert count(names) == 8


def sparse(kind, pieces, size, content):
    """A member with holes, as GNU tar writes it into PAX headers of version 1.0 or 0.1."""
    if kind == "1.0":
        text = "\n".join(map(str, [len(pieces), *sum(pieces, ())])) + "\n"
        content = text.encode().ljust(512, b"\0") + content
        headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}
    else:
        headers = {"GNU.sparse.map": ",".join(map(str, sum(pieces, ()))), "GNU.sparse.size": str(size)}
    return {**headers, "GNU.sparse.name": "cat/sparse.png"}, content


@pytest.mark.parametrize("kind", ["1.0", "0.1"])
def test_a_picture_with_holes_in_a_tar(tmp_path, kind):
    whole = png(5) + bytes(3000)
    headers, content = sparse(kind, [(0, len(png(5)))], len(whole), png(5))
    source = with_headers(tmp_path / "t.tar", headers, content)
    (read,) = (member.found.read for member in tars.members(source) if "sparse" in member.name)
    assert read() == whole
    names, _ = run(source, tmp_path / "out")
    assert count(names) == 9


def with_headers(file, headers, content, cut=0):
    with tarfile.open(file, "w") as tar:
        for name, data in USUAL:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("cat/odd.png")
        info.pax_headers, info.size = headers, len(content)
        tar.addfile(info, io.BytesIO(content))
    if cut:
        os.truncate(file, file.stat().st_size - cut)
    return file


@pytest.mark.parametrize(
    ("headers", "content", "message"),
    [
        ({"size": "-512"}, b"x" * 512, "damaged header"),
        ({"size": "-1536"}, b"x" * 512, "damaged header"),
        ({"size": "9" * 17}, b"x", "unexpected end of data|cannot be read"),
        ({"size": "1e3"}, b"x", "is empty"),
        (*sparse("1.0", [(0, 1)] * 400, 10**15, b"x"), "cannot be read"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, b"99999999999\n", "cannot be read"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, b"no number\n", "cannot be read"),
        (*sparse("0.1", [(-5, 3)], 10, b"x"), "impossible places"),
        (*sparse("0.1", [(5, 30)], 10, b"x" * 30), "impossible places"),
        (*sparse("0.1", [(0, 1)], -10, b"x"), "damaged header"),
        (*sparse("0.1", [(0, 1)], 10**15, b"x"), "holds 1,000,000,000,000,000 bytes"),
    ],
)
def test_odd_headers_of_a_tar_are_one_line_or_skipped(tmp_path, headers, content, message):
    source = with_headers(tmp_path / "t.tar", headers, content)
    refused(message, source, tmp_path / "out")


def test_headers_upon_headers(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 12
    block = header.tobuf(tarfile.USTAR_FORMAT) + b"12 comment=\n".ljust(512, b"\0")
    (tmp_path / "t.tar").write_bytes(block * 3000)
    refused("cannot be read as a folder or tar file", tmp_path / "t.tar", tmp_path / "out")


@pytest.mark.parametrize("seed", range(60))
def test_a_tar_with_changed_bytes_is_read_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    headers, content = sparse(rng.choice(["1.0", "0.1"]), [(0, len(png(5)))], 3000, png(5))
    file = with_headers(tmp_path / "t.tar", headers, content)
    changed = bytearray(file.read_bytes())
    with tarfile.open(file) as tar:
        starts = [member.offset for member in tar]
    for _ in range(rng.choice((1, 3, 10))):
        changed[rng.choice(starts) + rng.randrange(512)] = rng.randrange(256)
    file.write_bytes(changed[: rng.choice((len(changed), rng.randrange(len(changed))))])
    with contextlib.suppress(InputError):
        run(file, tmp_path / "out", on_error="skip")
