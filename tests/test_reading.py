"""The door: what does not fit a form is one line that names file and field, whatever it is; and costs no memory."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, strategies

from alexnet_jax.options import InputError
from alexnet_jax.reading import (
    LARGEST,
    ArrayForm,
    Count,
    Fraction,
    archive,
    from_json,
    read_arrays,
    read_json,
    read_lines,
)

MUTATIONS = Path(__file__).parents[1] / "experiments" / "mutations.py"


@contextlib.contextmanager
def taking_at_most(size):
    """Bytes, beside what there was."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


class Form(msgspec.Struct):
    count: Count
    part: Fraction = 0.0
    names: list[str] = []
    more: dict[str, Any] = {}


def test_what_fits_comes_back(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"count": 3, "part": 1, "names": ["ä"], "of a later version": [null]}')
    found = read_json(file, Form)
    assert (found.count, found.part, found.names) == (3, 1.0, ["ä"])
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", Form)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is no JSON"),
        ('{"count": 3', "it is no JSON"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field `count`"),
        ('{"count": null}', "count: Expected `int`, got `null`"),
        ('{"count": true}', "count: Expected `int`, got `bool`"),
        ('{"count": 3.5}', "count: Expected `int`, got `float`"),
        ('{"count": -1}', "count: Expected `int` >= 0"),
        ('{"count": 9223372036854775808}', "count: Expected `int` <= 9223372036854775807"),
        ('{"count": ' + "9" * 5000 + "}", "count: Expected a finite number"),
        ('{"count": 3, "part": NaN}', "part: Expected a finite number"),
        ('{"count": 3, "part": 1e400}', "part: Expected a finite number"),
        ('{"count": 3, "part": 1.5}', "part: Expected `float` <= 1.0"),
        ('{"count": 3, "names": "abc"}', "names: Expected `array`, got `str`"),
        ('{"count": 3, "names": ["a", 3]}', "names[1]: Expected `str`, got `int`"),
        ('{"count": 3, "names": ["\\ud800"]}', "names[0]: Expected text"),
        ('{"count": 3, "more": {"\\ud800": 1}}', "more: A name in it is no text"),
        ('{"count": 3, "count": 3}', "count is there twice"),
        ('{"count": 3, "more": {"a": ' + "[" * 20 + "]" * 20 + "}}", "more.a[0]"),
        ('{"count": 3, "more": {"a": ' + "[" * 10**5 + "]" * 10**5 + "}}", "more.a[0]"),
        ('{"count": 3, "more": ' + '{"a": ' * 10**5 + "1" + "}" * 10**5 + "}", "more.a.a"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, reason):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        read_json(file, Form)
    assert str(error.value).startswith(f"{file}: cannot be read (")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_larger_than_any_file_of_ours_is_not_read(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"step": 1, "more": [' + "[], " * (LARGEST // 4) + "[]]}\n{}\n")
    with pytest.raises(InputError, match=r"a\.json: cannot be read \(it is larger than 33,554,432 bytes\)"):
        read_json(file, Form)
    (_, first), (_, second) = read_lines(file, dict[str, Any])
    assert str(first) == f"{file}: line 1 cannot be read (it is larger than 33,554,432 bytes)"
    assert second == {}
    os.truncate(file, 2**28 + 1)
    with pytest.raises(InputError, match=r"a\.json: cannot be read \(it is larger than 268,435,456 bytes\)"):
        next(read_lines(file, dict[str, Any]))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(InputError, match=r"a: cannot be read \(it is no file\)"):
        read_json(tmp_path / "a", Form)
    with pytest.raises(InputError, match=r"a: cannot be read \(it is no file\)"):
        read_arrays(tmp_path / "a", FORMS)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_what_can_be_no_name_of_a_file_is_one_line(tmp_path, name):
    with pytest.raises(InputError, match=r"b: cannot be read \("):
        read_json(tmp_path / name, Form)
    with pytest.raises(InputError, match=r"b: cannot be read \("):
        read_arrays(tmp_path / name, FORMS)


ODD = {
    "many names, and one of them twice": lambda: (
        '{"more": {' + ", ".join(f'"{n}": 0' for n in [*range(5_000), 7]) + "}}"
    ),
    "a long name there twice": lambda: '{"more": {' + f'"{"x" * 10**6}": 0, "{"x" * 10**6}": 0' + "}}",
    "a long name of a long list": lambda: '{"more": {"' + "x" * 10**6 + '": [' + "0, " * 5000 + '"\\ud800"]}}',
    "a long text before what is deep": lambda: (
        '{"more": {"a": "' + "x\\n" * 10**5 + '", "b": ' + "[" * 10**5 + "]" * 10**5 + "}}"
    ),
    "lines in a name": lambda: '{"more": {"a\\nb\\u001b[31m": NaN}}',
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_and_long_is_refused_soon_in_a_short_line(tmp_path, kind):
    text, file = ODD[kind](), tmp_path / "a.json"
    file.write_text(text)
    began = time.process_time()
    with taking_at_most(20e6), pytest.raises(InputError) as error:
        read_json(file, Form)
    assert time.process_time() - began < 20
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


@given(strategies.binary(max_size=200) | strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text(),
    lambda of: strategies.lists(of) | strategies.dictionaries(strategies.sampled_from([*Form.__struct_fields__]), of),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_anything_is_of_the_form_or_refused(content):
    found = refusal = None
    try:
        found = from_json(content, Form, "a.json:")
    except InputError as error:
        refusal = str(error)
    assert refusal.startswith("a.json: cannot be read (") if refusal else found.count >= 0 and 0 <= found.part <= 1


FORMS = {"images": ArrayForm("f", ("n", 2), 0, 255), "labels": ArrayForm("iu", ("n",), 0), "name": ArrayForm("U")}
GOOD = {"images": np.ones((3, 2), np.float32), "labels": np.array([0, 1, 2]), "name": np.array("ä")}


def test_arrays_come_back_as_archive_and_numpy_wrote_them(tmp_path):
    file = tmp_path / "a.npz"
    file.write_bytes(archive(**GOOD))
    np.savez(tmp_path / "b.npz", **{**GOOD, "images": np.asfortranarray(GOOD["images"].astype(">f8"))})
    for name in ("a.npz", "b.npz"):
        found = read_arrays(tmp_path / name, FORMS)
        assert [*found] == [*FORMS]
        for array in FORMS:
            np.testing.assert_array_equal(found[array], GOOD[array])
            assert found[array].dtype.isnative
    with np.load(file, allow_pickle=False) as opened:  # as anybody may
        np.testing.assert_array_equal(opened["labels"], GOOD["labels"])


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("images", np.ones((3, 3)), "its shape is (3, 3); there must be 2, by its form"),
        ("images", np.ones(6), "its shape is (6,); it must have 2 dimensions"),
        ("labels", np.arange(4), "its shape is (4,); there must be 3, by images"),
        ("images", np.full((3, 2), np.nan), "there are numbers that are not between 0 and 255"),
        ("images", np.full((3, 2), np.inf), "there are numbers that are not between 0 and 255"),
        ("images", np.full((3, 2), -1.0), "there are numbers that are not between 0 and 255"),
        ("images", np.ones((3, 2), complex), "its numbers are of the type complex128"),
        ("images", np.ones((3, 2), object), "its numbers are of the type object"),
        ("labels", np.array(["0", "1", "2"]), "its numbers are of the type <U1"),
        ("labels", np.array([0, 1, -2]), "there are numbers that are not between 0 and inf"),
        ("name", np.array(3), "it is no text"),
        ("name", np.array("\ud800"), "it is no text"),
        ("name", np.array([0x7FFFFFFF], np.uint32).view("<U1").reshape(()), "it is no text"),
        ("name", np.array([0x10FFFF], ">u4").byteswap().view(">U1").reshape(()), "it is no text"),
    ],
)
def test_an_array_that_does_not_fit_is_named(tmp_path, name, values, reason):
    file = tmp_path / "a.npz"
    np.savez(file, **{**GOOD, name: values})
    with pytest.raises(InputError) as error:
        read_arrays(file, FORMS)
    assert str(error.value) == f"{file}: cannot be read ({name}: {reason})"


def test_so_is_one_that_is_missing_compressed_or_other_than_was_written(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, images=GOOD["images"])
    with pytest.raises(InputError, match=r"\(labels: it is missing\)"):
        read_arrays(file, FORMS)
    np.savez_compressed(file, **GOOD)
    with pytest.raises(InputError, match=r"\(images: its length is not that of its shape\)"):
        read_arrays(file, FORMS)
    file.write_bytes(archive(**GOOD))
    with np.load(file) as opened:
        arrays = dict(opened)
    np.savez(file, **{**arrays, "labels": np.array([0, 2, 1])})
    with pytest.raises(InputError, match=r"\(labels: it is not what was written, by its checksums\)"):
        read_arrays(file, FORMS)
    content = bytearray(archive(**GOOD))
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        with contextlib.suppress(InputError):
            found = read_arrays(file, FORMS)
            for array in FORMS:
                np.testing.assert_array_equal(found[array], GOOD[array])


def test_a_shape_that_lies_takes_no_memory(tmp_path):
    file = tmp_path / "a.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000, 2), }"  # 800 MB
    header += b" " * (118 - len(header)) + b"\n"
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(80))
    with taking_at_most(1e6), pytest.raises(InputError, match=r"\(images: its length is not that of its shape\)"):
        read_arrays(file, FORMS)


@pytest.mark.parametrize("mutations", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_whatever_field_is_changed_the_answer_is_the_same_or_a_line_names_it(quickly_compiled, mutations):
    command = [sys.executable, str(MUTATIONS), f"--mutations={mutations}", f"--seed={mutations}", "--no_log"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert process.returncode == 0, process.stdout + process.stderr[-3000:]
    assert re.search(rf"^{mutations} mutations of [6-9] files: 0 ends that must not be$", process.stdout, re.MULTILINE)
