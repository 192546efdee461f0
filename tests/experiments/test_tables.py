"""The pages say what is: tables from their logs, and tests that exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_what_the_logs_say():
    command = [sys.executable, str(ROOT / "experiments" / "tables.py"), "--check"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_the_tests_that_the_pages_name_exist():
    named = set()
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        named |= set(re.findall(r"`(test_\w+\.py)::(\w+)`", page.read_text()))
    texts = {file.name: file.read_text() for file in (ROOT / "tests").rglob("test_*.py")}
    missing = {f"{file}::{test}" for file, test in named if f"def {test}(" not in texts.get(file, "")}
    assert len(named) > 20
    assert not missing
