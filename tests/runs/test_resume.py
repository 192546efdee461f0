"""Killed at any moment, a run ends with the numbers of one that was left alone. And what stops a run by itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax.runs import log as runlog

KILLS = Path(__file__).parents[2] / "experiments" / "kills.py"


@pytest.mark.slow
def test_runs_killed_in_every_phase_are_bit_for_bit_those_that_were_not(tmp_path):
    command = [sys.executable, str(KILLS), "--kills=40", "--no_log", f"--scratch={tmp_path}"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert process.returncode == 0, process.stdout + process.stderr
    *runs, last = process.stdout.splitlines()
    assert last == "40 kills of 4 runs: all equal to those left alone"
    found = [ast.literal_eval(run) for run in runs[-4:]]
    assert all(
        set(run["by_phase"]) >= {"compile", "first line", "checkpoint", "rename", "evaluation", "figures"}
        for run in found
    )
    assert sum(run["in_a_checkpoint"] for run in found) >= 4


def test_a_read_that_hangs_for_ever_ends_the_run(tmp_path, prepared, quickly_compiled):
    program = (
        "import threading\n"
        "from alexnet_jax import Config, Dense, command, fit, open_dataset\n"
        "from alexnet_jax.data import input_pipeline\n"
        "input_pipeline._load = lambda *_: threading.Event().wait(600)\n"
        "layers = (Dense(3),)\n"
        "config = Config(crop_size=32, batch_size=16, stall_timeout=1)\n"
        f"command.run(lambda: fit(layers, open_dataset({str(prepared)!r}), config, {str(tmp_path)!r}), '')"
    )
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2
    assert f"error: {prepared}: no batch was read in 1 s (--stall_timeout)" in process.stderr


def test_a_last_line_that_is_half_written_is_not_there(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert runlog.read_metrics(file) == []
    file.write_text('{"step": 1}\n{"step": 2')
    assert runlog.read_metrics(file) == [{"step": 1}]


GOOD = [b'{"step": 1, "loss": 2.5, "of my own": NaN}', b'{"step": 2, "split": "train"}', b'{"step": 9}']
BAD = {
    "zeros": (b'\0\0\xff{"st', "it is no JSON"),
    "half": (b'{"step": 2, "loss": 1.', "it is no JSON"),
    "no object": (b"[1]", "Expected `object`"),
    "no step": (b'{"loss": 1.5}', "missing required field `step`"),
    "text": (b'{"step": "2"}', "step: Expected `int`, got `str`"),
    "negative": (b'{"step": -2}', "step: Expected `int` >= 0"),
    "not finite": (b'{"step": 2, "loss": NaN}', "loss: Expected `float` >= 0"),
    "huge": (b'{"step": 2, "loss": 1e400}', "loss: Expected `float` <= "),
    "digits": (b'{"step": 1' + b"0" * 5000 + b"}", "step: Expected `int`, got `float`"),
    "no fraction": (b'{"step": 2, "top1_error": 1.5}', "top1_error: Expected `float` <= 1"),
    "deep": (b'{"step": 2, "mine": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "mine"),
    "twice": (b'{"step": 2, "step": 3}', "step is there twice"),
    "of no step of this run": (b'{"step": 1000000000}', "step: is 1000000000 of 9"),
}


def test_of_very_many_bad_lines_some_are_named_and_all_counted(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n" * 5000 + b"\n".join([*GOOD, b""]))
    runlog.RunLog(tmp_path, first_step=9, steps=9, steps_per_epoch=3.0, batch_size=1).close()
    warnings = [of for of in capsys.readouterr().err.splitlines() if of.startswith("warning: ")]
    assert len(warnings) == runlog.NAMED + 1
    assert warnings[-1] == f"warning: {file}: so are 4,980 lines more"
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"\n" * 5000
    assert [of["step"] for of in runlog.read_metrics(file)] == [1, 2, 9]


@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named_and_set_aside_and_the_others_stay(tmp_path, capsys, line, reason):
    file = tmp_path / "metrics.jsonl"
    first, *others = GOOD
    file.write_bytes(b"\n".join([first, line, *others, b""]))
    runlog.RunLog(tmp_path, first_step=9, steps=9, steps_per_epoch=3.0, batch_size=1).close()
    (warning,) = (of for of in capsys.readouterr().err.splitlines() if of.startswith("warning: "))
    assert warning.startswith(f"warning: {file}: line 2 cannot be read (")
    assert reason in warning
    assert warning.endswith(f"; it is now in {file}.damaged")
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == line + b"\n"
    assert [of["step"] for of in runlog.read_metrics(file)] == [1, 2, 9]
    runlog.RunLog(tmp_path, first_step=2, steps=9, steps_per_epoch=3.0, batch_size=1).close()
    assert "warning" not in capsys.readouterr().err
    assert [of["step"] for of in runlog.read_metrics(file)] == [1, 2]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == line + b"\n"
