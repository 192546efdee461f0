"""Writing a file whole or not at all; and which software this is."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def versions() -> dict[str, Any]:
    """Which software this is: versions, and the commit where the package runs from a git checkout."""
    packages = ("alexnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets")
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = "not installed"
    return {"versions": found, "commit": _commit()}


def _commit() -> str | None:
    """The package's commit, with "-dirty" where files were changed since; None where it is no checkout of its own."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes a file so that a kill or a power cut leaves the old one or the new one, never half of it."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as written:
        written.write(content if isinstance(content, bytes) else content.encode())
        written.flush()
        os.fsync(written.fileno())
    partial.replace(file)
