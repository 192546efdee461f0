"""Names and messages from elsewhere, wherever they are shown: nothing in them turns a line round or ends it."""

import csv
import errno
import io
import itertools
import json
import os
import re
import sys
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from alexnet_jax import figures, predict
from alexnet_jax.networks import ensemble
from alexnet_jax.runs import log
from alexnet_jax.runs.log import RunLog
from alexnet_jax.shown import Stream, reason, say, shown

NASTY = [chr(code) for code in range(0xA0) if not 32 <= code < 127] + [
    *"\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\ud800\udc80\udcff\U000e0041"
]
TEXTS = st.text(st.one_of(st.sampled_from(NASTY), st.characters(codec=None), st.sampled_from("aé✓猫")), max_size=12)
MANY = settings(max_examples=10 * settings().max_examples)


def is_harmless(line):
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\u200c\u200d" for c in line)


@MANY
@given(TEXTS)
def test_shown_text_is_one_harmless_line_and_tells_what_it_was(text):
    found = shown(text)
    assert is_harmless(found)
    assert len(found.splitlines()) <= 1
    found.encode()
    if "\\" not in text:  # else that may be the text's own
        short = {"\\n": "\n", "\\r": "\r", "\\t": "\t"}
        pattern = r"\\[nrt]|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}"
        assert re.sub(pattern, lambda m: short.get(m[0]) or chr(int(m[0][2:], 16)), found) == text


def test_a_reason_is_one_line_and_not_long():
    assert reason(ValueError(" a\n\n  b ")) == "a b"
    assert reason(ValueError()) == "ValueError"
    assert reason(KeyError("a")) == "'a'"
    assert reason(ValueError("a" * 10**6)) == "a" * 200 + "…"


@pytest.mark.parametrize("text", ["", "café", "猫", "❤️", "می‌خواهم", "👩‍👧", "a b", "×"])
def test_what_can_be_shown_is_left_alone(text):
    assert shown(text) == text


@MANY
@given(TEXTS, st.sampled_from(["ascii", "latin-1", "utf-8", "utf-16"]))
def test_every_stream_takes_every_text(text, encoding):
    content = io.BytesIO()
    stream = Stream(io.TextIOWrapper(content, encoding, newline=""))
    assert stream.write(text) == len(text)
    stream.flush()
    found = content.getvalue().decode(encoding)
    assert is_harmless(re.sub("[\n\r\t]", "", found))  # which are of whoever writes: lines, and a progress bar
    assert [c for c in found if c in "\n\r\t"] == [c for c in text if c in "\n\r\t"]


@MANY
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_what_is_said_is_a_line_each(texts):
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), "ascii", newline="") for _ in range(2))
    try:
        say(*texts)
        say(*texts, error=True)
        found = [stream.buffer.getvalue().decode() for stream in (sys.stdout, sys.stderr)]
    finally:
        sys.stdout, sys.stderr = stdout, stderr
    assert found[0] == found[1]
    assert found[0].count("\n") == len(texts)
    assert all(map(is_harmless, found[0].split("\n")))


class Broken(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, _):
        raise OSError(self.number, os.strerror(self.number))

    def flush(self):
        self.write("")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EBADF, errno.EIO])
def test_a_reader_that_has_gone_is_no_error(number):
    Stream(Broken(number)).write("text")
    Stream(Broken(number)).flush()


def test_a_full_disk_is_one_only_where_the_text_is_needed():
    Stream(Broken(errno.ENOSPC), needed=False).write("text")
    with pytest.raises(OSError, match="No space"):
        Stream(Broken(errno.ENOSPC)).write("text")


def test_where_there_is_no_stream_nothing_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    say("text")


@MANY
@given(TEXTS, TEXTS)
def test_predictions_are_harmless_lines_and_the_json_says_the_same_names(file, name):
    seen = predict.Prediction(file, np.zeros((2, 2, 3), np.uint8), [(name, 0.5)], name)
    line = shown(predict.as_json(seen))
    found = json.loads(line)
    assert (found["file"], found["label"], found["top"][0]["class"]) == (file, name, name)


HARD = ["\x1b[31mred", "bidi\u202etxt", "half\udcff", "a\nb", "$\\frac{", "猫", "", "tab\t"]


def test_figures_take_every_name_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = np.zeros((8, 8, 3), np.uint8)
        tops = [[(name, 0.5)] for name in HARD]
        figures.save_predictions([image] * len(HARD), tops, HARD, tmp_path / "predictions.svg")
        figures.save_confusion(np.eye(len(HARD), dtype=int), HARD, tmp_path / "confusion.svg")
        figures.save_activations(image, np.zeros((2, 2, 3), np.float32), "".join(HARD), tmp_path / "maps.svg")
    assert len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.iterdir():
        assert "\u202e" not in file.read_text()


def test_curves_are_drawn_of_what_the_lines_say(tmp_path):
    """Each of these is a line as `log.Line` takes it."""
    train = {"step": 1, "epoch": 0.5, "split": "train", "loss": 2.0, "top1_error": 0.5}
    validation = {"step": 2, "epoch": 1.0, "split": "validation", "nll": 2.0, "top1_error": 0.5, "top5_error": 0.1}
    odd = [{"step": 2}, {"step": 2, "split": "train"}, {"step": 2, "split": "validation", "epoch": 1.0}]
    fields = itertools.product((train, validation), ("epoch", "loss", "nll"), (None, 1e308))
    odd += [{**of, name: value} for of, name, value in fields]
    odd += [{**train, "split": "\x1b", "learning_rate": "x"}, {**train, "learning_rate": []}]
    for number, lines in enumerate(([], odd, [train, validation], [train, *odd, validation, train])):
        figures.save_curves(lines, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


def test_tables_have_a_line_for_each_class(tmp_path):
    ensemble._write_table(tmp_path / "table.csv", ["class", *HARD], [[name, 1] for name in HARD])
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert all(map(is_harmless, lines))
    assert [row[0] for row in csv.reader(lines)] == ["class", *map(shown, HARD)]


def test_metrics_of_any_name_are_logged(tmp_path):
    written = RunLog(tmp_path, first_step=0, steps=1, steps_per_epoch=1, batch_size=1)
    written.train(1, {"loss": 1.0, "top1_error": 1.0, **{name: 2.0 for name in HARD if name}})
    written.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/_u001b_31mred" in events.read_bytes()  # where only letters, digits and _ are allowed
    assert set(json.loads((tmp_path / "metrics.jsonl").read_text())) > {name for name in HARD if name}


def test_what_hides_pytorch_leaves_it_as_it_was(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as somebody may who has a broken one
    log._tensorboard()
    assert sys.modules["torch"] is None
    monkeypatch.delitem(sys.modules, "torch")
    log._tensorboard()
    assert "torch" not in sys.modules
