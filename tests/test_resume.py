"""Killed at any moment, a run ends with the numbers of one that was left alone. And what stops a run by itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parent.parent / "experiments" / "kills.py"


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_bit_for_bit_the_run_that_was_not():
    command = [sys.executable, str(KILLS), "--kills=20", "--no_log"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout + process.stderr
    last = process.stdout.splitlines()[-1]
    found = re.fullmatch(r"20 kills, (\d+) in a checkpoint, \d+ steps: state equal True, lines equal True", last)
    assert found, process.stdout
    assert int(found[1]) >= 3
