"""Fetching a published file: broken off, changed, refused; what is used is what its owner published."""

import contextlib
import errno
import hashlib
import http.client
import http.server
import io
import os
import threading
import time
import urllib.error

import numpy as np
import pytest

from alexnet_jax import downloads
from alexnet_jax.options import InputError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(http.server.ThreadingHTTPServer):
    """On this machine. answers: what it does with each request, the last one from then on. asked: for which ranges."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.answers, self.asked = CONTENT, ["whole"], []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/weights.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        kind = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if self.path == "/elsewhere":
            kind = "whole"
        if isinstance(kind, int) and kind >= 400:
            return self.head(kind, 0)
        if kind == "redirect":
            return self.head(302, 0, Location="/elsewhere")
        if kind == "no ranges":
            start = 0
        if start >= len(server.content):
            return self.head(416, 0, **{"Content-Range": f"bytes */{len(server.content)}"})
        rest = server.content[start:]
        ranges = {"Content-Range": f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"} if start else {}
        if kind == "another range":
            ranges = {"Content-Range": f"bytes {start + 1}-{len(server.content) - 1}/{len(server.content)}"}
        self.head(206 if start else 200, len(rest), **ranges)
        with contextlib.suppress(OSError):
            if kind == "slow":
                for place in range(0, len(rest), 500_000):
                    self.wfile.write(rest[place : place + 500_000])
                    time.sleep(0.05)
            elif kind == "stands still":
                self.wfile.write(rest[:1_000_000])
                time.sleep(2)
            else:
                self.wfile.write(rest[:1_000_000] if kind == "breaks off" else rest)
        self.close_connection = True
        return None

    def head(self, code, length, **headers):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": length}.items():
            self.send_header(name, str(value))
        self.end_headers()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.5)
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def published(server, algorithm="sha256", content=CONTENT):
    digest = hashlib.new(algorithm, content).hexdigest()
    return downloads.Published("weights.bin", server.address, algorithm, digest)


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        (["whole"], [None]),
        (["redirect"], [None, None]),
        (["slow"], [None]),
        (["breaks off", "breaks off", "whole"], [None, "bytes=1000000-", "bytes=2000000-"]),
        (["stands still", "whole"], [None, "bytes=1000000-"]),
        (["breaks off", "no ranges"], [None, "bytes=1000000-"]),
        (["breaks off", "another range", "whole"], [None, "bytes=1000000-", None]),
        ([503, 429, 408, "whole"], [None] * 4),
    ],
)
def test_a_file_arrives_whole_and_is_not_asked_for_again(server, tmp_path, answers, asked):
    server.answers = answers
    for _ in range(2):
        place = downloads.fetched(published(server, "sha1"))
        assert place == tmp_path / "cache" / "weights.bin"
        assert place.read_bytes() == CONTENT
    assert server.asked == asked
    assert not place.with_name("weights.bin.partial").exists()


def test_what_had_arrived_before_is_taken_up(server, tmp_path):
    (tmp_path / "cache").mkdir()
    partial = tmp_path / "cache" / "weights.bin.partial"
    for there, asked in (
        (CONTENT[:2_999_999], ["bytes=2999999-"]),
        (CONTENT, ["bytes=3000000-"]),  # all but its new name
        (CONTENT + b"more", ["bytes=3000004-", None]),
        (b"of another version"[::-1] * 9, ["bytes=162-", None]),  # known by the checksum at the end
    ):
        partial.write_bytes(there)
        server.asked = []
        place = downloads.fetched(published(server))
        assert place.read_bytes() == CONTENT
        assert server.asked == asked
        place.unlink()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([404], "HTTP 404 Not Found"),
        ([403], "HTTP 403 Forbidden"),
        ([500], "HTTP 500 Internal Server Error"),
        (["other content"], r"what came is another file, by its SHA256 \([0-9a-f]{64}\)"),
    ],
)
def test_what_cannot_be_fetched_is_one_line_with_all_that_it_takes_by_hand(server, tmp_path, answers, message):
    file, server.answers = published(server), answers
    if answers == ["other content"]:
        server.content = CONTENT[::-1]
    place = tmp_path / "cache" / "weights.bin"
    by_hand = f"; to put it there by hand: {file.address} as {place}, SHA256 {file.digest}$"
    with pytest.raises(InputError, match=rf"^{file.address}: cannot be fetched \({message}\){by_hand}"):
        downloads.fetched(file)
    assert len(server.asked) == (downloads.TRIES if answers == [500] else 1)
    assert not place.exists()
    place.write_bytes(CONTENT)  # by hand
    assert downloads.fetched(file) == place
    place.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=rf"^{place}: is not what {file.address} is, by its SHA256 .*fetched again$"):
        downloads.fetched(file)


def test_nobody_there_and_a_proxy_that_is_not_there_are_the_same_line(server, monkeypatch):
    for file in (
        published(server)._replace(address="http://127.0.0.1:9/weights.bin"),
        published(server)._replace(address="http://name.invalid/weights.bin"),
        published(server)._replace(address="nowhere"),
    ):
        with pytest.raises(InputError, match=rf"^{file.address}: cannot be fetched \(.+\); to put it there by hand: "):
            downloads.fetched(file)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be fetched"):
        downloads.fetched(published(server))
    assert server.asked == []
    monkeypatch.setenv("http_proxy", server.address)
    assert downloads.fetched(published(server)._replace(address="http://name.invalid/weights.bin")).exists()


def test_more_than_any_network_has_is_not_kept(server, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST", 1_500_000)
    with pytest.raises(InputError, match=r"it is larger than 1,500,000 bytes"):
        downloads.fetched(published(server))
    assert sum(file.stat().st_size for file in downloads.cache_folder().iterdir()) == 0


def cannot(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_cache_that_takes_no_file_is_one_line(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    cache = tmp_path / "cache"
    (cache / "a folder" / "weights.bin").mkdir(parents=True)
    for folder, number, broken in (
        (tmp_path / "file", errno.EEXIST, None),
        (cache / "a folder", errno.EISDIR, None),
        (cache / "no locks", errno.ENOLCK, "fcntl.flock"),  # as some NFS
        (cache / "full", errno.ENOSPC, "os.fsync"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv("ALEXNET_JAX_CACHE", str(folder))
            if broken:
                patched.setattr(broken, cannot(number))
            message = rf"^{folder}: weights\.bin cannot be fetched into it \({os.strerror(number)}\); ALEXNET_JAX_"
            with pytest.raises(InputError, match=message):
                downloads.fetched(published(server))
    (cache / "weights.bin.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match=rf"^{cache}: weights\.bin cannot be fetched into it \(No space left"):
        downloads.fetched(published(server))
    assert len(server.asked) == 2  # not again and again


def test_no_route_while_it_is_read_is_another_try(server, monkeypatch):
    received, left = http.client.HTTPResponse.read1, [errno.EHOSTUNREACH, errno.ENETUNREACH]

    def read1(self, *arguments):
        return cannot(left.pop())() if left else received(self, *arguments)

    monkeypatch.setattr("http.client.HTTPResponse.read1", read1)
    assert downloads.fetched(published(server)).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_an_answer_that_refuses_is_closed(server, tmp_path, monkeypatch):
    closed = []
    close = urllib.error.HTTPError.close
    monkeypatch.setattr("urllib.error.HTTPError.close", lambda self: (closed.append(self.code), close(self)))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights.bin.partial").write_bytes(CONTENT)
    downloads.fetched(published(server)).unlink()
    server.answers = [503, 404]
    with pytest.raises(InputError, match="HTTP 404"):
        downloads.fetched(published(server))
    assert closed == [416, 503, 404]


def test_of_two_at_once_one_fetches(server, capsys):
    server.answers = ["slow"]
    places = []
    threads = [threading.Thread(target=lambda: places.append(downloads.fetched(published(server)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [None]
    assert [place.read_bytes() == CONTENT for place in places] == [True] * 3
    assert capsys.readouterr().err.count("another process fetches it") == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_lines_or_on_a_terminal_a_bar(server, monkeypatch, capsys, tmp_path):
    downloads.fetched(published(server)).unlink()
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert (output.out, "\r" in output.err) == ("", False)
    assert lines[0] == f"{server.address}: fetched into {tmp_path / 'cache'}"
    assert lines[-1].startswith("3.00M/3.00MB [")
    assert 2 <= len(lines) <= 4
    assert not any("/0.00B" in line for line in lines)  # as long as its length is not known
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    downloads.fetched(published(server))
    assert "\r" in terminal.getvalue()
    assert "weights.bin: 100%" in terminal.getvalue()


def test_the_cache_is_where_the_surroundings_say(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ALEXNET_JAX_CACHE", raising=False)
    assert downloads.cache_folder() == tmp_path / ".cache" / "alexnet_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert str(downloads.cache_folder()) == "/shared/alexnet_jax"
    monkeypatch.setenv("ALEXNET_JAX_CACHE", "~/weights")
    assert downloads.cache_folder() == tmp_path / "weights"
