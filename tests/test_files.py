"""Files are written whole or not at all, by one process at a time; and read by the name that was given."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from alexnet_jax.files import only_process, partial_of, place, whole_paths, write_whole
from alexnet_jax.options import InputError


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_what_cannot_be_written_to_its_end_leaves_the_old_file_and_nothing_else(tmp_path):
    write_whole(tmp_path / "a", "old")

    def half():
        with partial_of(tmp_path / "a") as (_, written):
            written.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert (names(tmp_path), (tmp_path / "a").read_text()) == (["a"], "old")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_named_by_the_file(tmp_path):
    (tmp_path / "a.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a'"):
        write_whole(tmp_path / "a", "text")
    assert names(tmp_path) == []


def test_what_a_killed_process_has_left_is_written_over(tmp_path):
    (tmp_path / "a.partial").write_text("long, and of a process that is no more")
    write_whole(tmp_path / "a", "new")
    assert (names(tmp_path), (tmp_path / "a").read_text()) == (["a"], "new")


def test_of_two_that_write_one_file_the_second_is_refused(tmp_path):
    file = tmp_path / "a"
    program = (
        f"from pathlib import Path; from alexnet_jax.files import write_whole; write_whole(Path({str(file)!r}), 'x')"
    )
    with partial_of(file) as (partial, written):
        written.write(b"the first")
        with pytest.raises(InputError, match=rf"^{file}: is being written by another process$"):
            write_whole(file, "the second")
        process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"InputError: {file}: is being written by another process" in process.stderr
        written.flush()
        partial.replace(file)
    assert (names(tmp_path), file.read_text()) == (["a"], "the first")
    write_whole(file, "again")
    assert file.read_text() == "again"


def test_a_file_that_was_opened_just_before_it_became_the_whole_one_is_not_written_over(tmp_path, monkeypatch):
    """The first process ends between the opening and the locking of the second."""
    locked = fcntl.flock

    def slow(*arguments):
        (tmp_path / "a.partial").write_text("of the first")
        (tmp_path / "a.partial").replace(tmp_path / "a")
        locked(*arguments)

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(InputError, match="is being written by another process"):
        write_whole(tmp_path / "a", "of the second")
    assert (names(tmp_path), (tmp_path / "a").read_text()) == (["a"], "of the first")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_whole(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    (tmp_path / "run").mkdir()
    refused = pytest.raises(InputError, match=rf"^{tmp_path}/run: cannot be locked \({os.strerror(number)}\)$")
    with refused, only_process(tmp_path / "run", ""):
        pass


def test_a_file_whose_name_begins_as_a_home_does_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/somebody")
    for name in ("~$photo.jpg", "~"):
        (tmp_path / name).touch()
        assert place(name).read_text() == ""
    assert str(place("~/a.jpg")) == "/home/of/somebody/a.jpg"


def test_a_comma_in_a_path_does_not_part_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "c,d,e").mkdir()
    assert whole_paths(["x", "a", "b", "y", "a", "b/c", "d", "e", "z"]) == ["x", "a,b", "y", "a,b/c,d,e", "z"]
