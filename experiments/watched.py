"""A command, watched with all that it starts: memory by time, open files, processor time, bytes read and written.

On Linux. Processor time says more than the clock where other programs run on the same cores.
"""

import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def processes_below(process: int) -> list[int]:
    """It and all that it has started, which are there."""
    try:
        tasks = [*Path(f"/proc/{process}/task").iterdir()]
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [process, *itertools.chain.from_iterable(map(processes_below, children))]


def seen_of(process: int) -> dict[str, float] | None:
    """Memory in MB, open files; time on the processor, bytes asked for and written so far."""
    try:
        folder = Path(f"/proc/{process}")
        memory = re.search(r"VmRSS:\s+(\d+) kB", (folder / "status").read_text())
        moved = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
        files = len(os.listdir(folder / "fd"))
        ticks = sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13]))
        return {"mb": round(int(memory[1]) * 1024 / 1e6) if memory else 0, "files": files,
                "seconds": ticks / os.sysconf("SC_CLK_TCK"),
                "read": int(moved["rchar"]), "written": int(moved["wchar"])}  # fmt: skip
    except (OSError, KeyError):  # it has just ended
        return None


def runs(process: int) -> bool:
    """Whether it is there, and has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def watched(command: list[str], until: Callable[[], bool] = lambda: False, by: int = signal.SIGKILL) -> dict[str, Any]:
    """Runs a command to its end, or until it is sent a signal; what it and its processes took, by time."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:  # a pipe holds 64 kB
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        found = _until_its_end(process, until, by)
        for file in (output, errors):
            file.seek(0)
        if process.returncode not in ((0,) if not found["signal"] else (-by,) if by == signal.SIGKILL else (0, 130)):
            sys.exit(f"{' '.join(command)} ended with {process.returncode}: {errors.read()[-3000:]}")
        return {"exit_code": process.returncode, **found, "output": output.read()}


def _until_its_end(process: subprocess.Popen, until: Callable[[], bool], by: int) -> dict[str, Any]:
    start = time.perf_counter()
    samples: list[list[float]] = []  # seconds, MB of each process
    peaks, last = {"first": 0, "others": 0, "together": 0}, {}
    files, told, next_sample, every = 0, 0.0, 0.0, 0.5
    while process.poll() is None:
        seconds = time.perf_counter() - start
        if seconds >= next_sample:
            found = {of: seen for of in processes_below(process.pid) if (seen := seen_of(of))}
            last |= found
            files = max([files, *(seen["files"] for seen in found.values())])
            memory = [seen["mb"] for seen in found.values()] or [0]
            if not samples or seconds >= samples[-1][0] + every:
                samples.append([round(seconds, 1), *memory])
            for name, mb in zip(peaks, (memory[0], max(memory[1:], default=0), sum(memory)), strict=True):
                peaks[name] = max(peaks[name], mb)
            if len(samples) >= 80:
                samples, every = samples[::2], 2 * every
            next_sample = seconds + 0.5
        if not told and until():
            process.send_signal(by)
            told = seconds
        time.sleep(0.05)
    while any(map(runs, last)):  # until all that it started have ended too
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    return {
        "signal": signal.Signals(by).name if told else "",
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(seen["seconds"] for seen in last.values()), 1),
        "seconds_after_the_signal": round(seconds - told, 2) if told else None,
        "peak_mb": peaks,
        "most_open_files": files,
        "bytes_read": sum(seen["read"] for seen in last.values()),
        "bytes_written": sum(seen["written"] for seen in last.values()),
        "memory_by_time": samples,
    }
