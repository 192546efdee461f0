"""Killed at any moment, a run ends with the numbers of one that was left alone. And what stops a run by itself."""

import ast
import subprocess
import sys
import time
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


def test_a_read_that_hangs_for_ever_ends_the_run(tmp_path, prepared):
    program = (
        "import threading\n"
        "from alexnet_jax import Config, Conv, Dense, command, fit, open_dataset, relu\n"
        "from alexnet_jax.data import input_pipeline\n"
        "input_pipeline._load = lambda *_: threading.Event().wait(60)\n"
        "layers = Conv(8, 5, then=(relu,)), Dense(3)\n"
        "config = Config(crop_size=32, batch_size=16, stall_timeout=1)\n"
        f"command.run(lambda: fit(layers, open_dataset({str(prepared)!r}), config, {str(tmp_path)!r}), '')"
    )
    command = [sys.executable, "-c", program]
    began = time.monotonic()
    process = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert time.monotonic() - began < 40
    assert process.returncode == 2
    assert f"error: {prepared}: no batch was read in 1 s (--stall_timeout)" in process.stderr


def test_lines_after_one_that_was_cut_by_a_power_failure_are_not_there(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert runlog.read_metrics(file) == []
    file.write_bytes(b'{"step": 1}\n{"step": 2}\n\0\0\xff{"st\n{"step": 4}\n')
    assert runlog.read_metrics(file) == [{"step": 1}, {"step": 2}]
    file.write_text('{"step": 1}\n{"step": 2')
    assert runlog.read_metrics(file) == [{"step": 1}]
