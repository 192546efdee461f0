"""A user's first minutes: the wheel alone, in a new environment and an empty folder; docs/first_minutes.md is its log.

  python experiments/first_minutes.py dist/*.whl            5 to 10 minutes on two cores
  python experiments/first_minutes.py dist/*.whl --check    2 minutes: trains shortly, and writes nothing

The wheel: by `python -m build`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from record import log, save, where

DRAW = """\
from pathlib import Path

import numpy as np
from alexnet_jax.data import shapes
from PIL import Image

Path("a_folder").mkdir()
for name in ("heart", "ring", "star"):
    pixels = shapes.draw([*shapes.SHAPES].index(name), np.random.default_rng(2012), size=300)
    Image.fromarray(pixels).save(f"a_folder/{name}.png")
"""
USE = """\
import numpy as np
from alexnet_jax import load, predict

network = load("my_run")
files = predict.files_of(["a_folder"])
rows = network.features(files, ["fc7:relu"])["fc7:relu"]
print(rows.shape)
print(np.corrcoef(rows).round(2))
"""
STEPS: list[tuple[str, str, dict[str, str]]] = [  # what it is, the command, files before it
    ("Install", "pip install --quiet {wheel}", {}),
    ("Train, without any data of one's own", "python -m alexnet_jax.main --workdir=my_run", {}),
    ("Three pictures that it has not seen", "python draw.py", {"draw.py": DRAW}),
    ("What it sees in them", "python -m alexnet_jax.predict --workdir=my_run a_folder", {}),
    ("Its features, in one's own code", "python use.py", {"use.py": USE}),
    ("Its features, in a file", "python -m alexnet_jax.features --workdir=my_run --output=fc7.npy a_folder", {}),
    ("One file to give away", "python -m alexnet_jax.weights --source=my_run --output=my_net.safetensors", {}),
    ("It stands for the run", "python -m alexnet_jax.predict --workdir=my_net.safetensors --json a_folder", {}),
]
VERSIONS = "import json; from alexnet_jax.files import versions; print(json.dumps(versions()['versions']))"


def run(command: str, folder: Path, errors: bool = False) -> dict[str, Any]:
    """What a command prints in the folder, with the environment beside it, and the seconds it takes. errors: of what it
    prints, standard error as well.
    """
    home = folder.parent
    env = {**os.environ, "HOME": str(home), "PATH": f"{home / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for name in ("PYTHONPATH", "XDG_CACHE_HOME", "ALEXNET_JAX_CACHE"):
        env.pop(name, None)
    start = time.perf_counter()
    to = subprocess.STDOUT if errors else None
    process = subprocess.run(command, shell=True, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=to, text=True)
    if process.returncode:
        sys.exit(f"{command}: exit code {process.returncode}\n{process.stdout}")
    output = process.stdout.replace(str(home), "~")
    return {"command": command, "output": output, "seconds": round(time.perf_counter() - start, 1)}


def page(name: str = "first_minutes") -> str:
    """The log as Markdown."""
    values = log(name)
    parts = []
    for step in values["steps"]:
        files = "".join(f"$ cat {name}\n{content}" for name, content in step["files"].items())
        shown = f"{files}$ {step['command']}\n{step['output']}".rstrip()
        parts.append(f"## {step['title']}\n\n```\n{shown}\n```")
        if "seconds" in step:
            parts.append(f"{step['seconds']:.0f} s")
    return "\n\n".join([*parts, f"On {where(values)}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "empty"
        folder.mkdir()
        shutil.copy(arguments.wheel, folder)
        venv.create(Path(home) / "venv", with_pip=True)
        steps = []
        for title, command, files in STEPS:
            for name, content in files.items():
                (folder / name).write_text(content)
            command = command.format(wheel=arguments.wheel.name)
            if arguments.check and "alexnet_jax.main" in command:
                command += " --epochs=0.1"
            steps.append({"title": title, "files": files, **run(command, folder)})
            print(f"$ {command}\n{steps[-1]['output']}", flush=True)
        if arguments.check:
            for command in ("", "-prepare", "-predict", "-features", "-weights"):
                run(f"alexnet-jax{command} --help", folder)
        else:
            versions = json.loads(run(f'python -c "{VERSIONS}"', folder)["output"])
            save("first_minutes", steps=steps, versions=versions)


if __name__ == "__main__":
    main()
