"""What the package weighs, beside an earlier state of it: wheel, folder, imports, and what it requires.

git worktree add ../before COMMIT
python experiments/package_size.py ../before      two minutes; expected: hundreds of kilobytes, imports as long
"""

import argparse
import email
import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from record import log, save, where

REPEATS = 9
MODULES = ("alexnet_jax", "alexnet_jax.networks.network")
EXTRAS = ("onnx", "onnxruntime")  # of [onnx] and [test]; of [test]
CPU_SECONDS = "import sys, time; start = time.process_time(); import {module}; print(time.process_time() - start)"


def unpacked(checkout: Path, folder: Path) -> dict[str, Any]:
    """Builds its wheel, and unpacks it into the folder."""
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(checkout)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        required = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    files = [file.stat().st_size for file in (folder / "alexnet_jax").rglob("*") if file.is_file()]
    return {
        "wheel_bytes": wheel.stat().st_size,
        "installed_bytes": sum(files),
        "files": len(files),
        "required": sorted(line for line in required if "extra ==" not in line),
    }


def cpu_seconds(module: str, folder: Path) -> float:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", CPU_SECONDS.format(module=module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=folder).stdout)


def installed_bytes(name: str) -> int:
    files = importlib.metadata.files(name) or []
    return sum(Path(file.locate()).stat().st_size for file in files if Path(file.locate()).exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the earlier state")
    checkouts = {"before": parser.parse_args().before, "after": Path(__file__).parent.parent}
    with tempfile.TemporaryDirectory() as home:
        folders = {name: Path(home) / name for name in checkouts}
        found = {name: unpacked(checkouts[name], folder) for name, folder in folders.items()}
        rounds = [
            {name: {module: cpu_seconds(module, folder) for module in MODULES} for name, folder in folders.items()}
            for _ in range(REPEATS + 1)
        ][1:]  # the first one compiles
    for name in checkouts:
        medians = {module: statistics.median(of[name][module] for of in rounds) for module in MODULES}
        found[name]["import_cpu_seconds"] = medians
    save("package_size", **found, extras_bytes={name: installed_bytes(name) for name in EXTRAS})


def sentence() -> str:
    values = log("package_size")
    before, after = values["before"], values["after"]

    def both(what: str) -> str:
        return f"{after[what] / 1000:.0f} kB ({before[what] / 1000:.0f} kB before)"

    times = ", ".join(
        f"`{module}` {after['import_cpu_seconds'][module]:.2g} s ({before['import_cpu_seconds'][module]:.2g} s)"
        for module in MODULES
    )
    new = {line.split(">")[0] for line in after["required"]} - {line.split(">")[0] for line in before["required"]}
    onnx, runtime = (values["extras_bytes"][name] / 1e6 for name in EXTRAS)
    return (
        f"The wheel has {both('wheel_bytes')}; installed, the package has {both('installed_bytes')}. Importing it "
        f"takes, in seconds of one core, {times}. It requires {', '.join(sorted(new)) or 'nothing'} more than before. "
        f'The extra `onnx` brings onnx ({onnx:.0f} MB), the tests onnxruntime too ({runtime:.0f} MB). "Before" is '
        f"the state before pre-trained networks, ONNX and explanations; medians of {REPEATS}; {where(values)}."
    )


if __name__ == "__main__":
    main()
