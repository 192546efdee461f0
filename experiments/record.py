"""Logs of experiments in results/: what was measured, by which command, on which machine and software, and when."""

import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from measured import digests, outdated

from alexnet_jax.files import versions

RESULTS = Path(__file__).parent / "results"
READ: dict[str, str] = {}  # the logs that `log` has read, and why each may be of other code than there is now


def machine() -> dict[str, Any]:
    """Processor and number of cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": names[0] if names else platform.processor(), "cores": cores}


def circumstances() -> dict[str, Any]:
    """When, on what, and of which files."""
    made = {"date": datetime.date.today().isoformat(), "machine": machine(), **versions()}
    return {**made, "measured": digests(Path(sys.argv[0]).stem)}


def save(name: str, **values: Any) -> Path:
    """Writes results/<name>.json: `values`, and all that one needs to know about them; `values` go before."""
    flags = [word for word in sys.argv[1:] if "/" not in word]  # where files lie on one machine helps no other
    command = " ".join(["python", f"experiments/{Path(sys.argv[0]).name}", *flags])
    log = {"command": command, **circumstances(), **values}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(log, indent=1) + "\n")
    print(f"written: {file}")
    return file


def log(name: str) -> dict[str, Any]:
    """What `save` wrote."""
    values = json.loads((RESULTS / f"{name}.json").read_text())
    READ[name] = outdated(values)
    return values


def where(values: dict[str, Any]) -> str:
    """Machine, version and date of a log, or of a kept training, which tells its "device"."""
    machine, device = values["machine"], values.get("device", "cpu")
    cores = "one core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    on = f"{cores} of an {machine['processor']}" if device.endswith("cpu") else f"one {device}"
    return f"{on}, jax {values['versions']['jax']}, {values['date']}"


def mean_and_std(values: Iterable[float], form: str = ".1f") -> str:
    """Their mean ± standard deviation, as text; of one value only that."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
