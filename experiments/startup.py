"""How long one waits before anything is computed: imports, and a run of one step with and without a compilation cache.

python experiments/startup.py      two minutes; expected: the package alone takes nothing, and its formulas under 2 s,
                                   most of them JAX's
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import save

REPEATS = 7
# The package itself imports nothing until a name is used; paper.train_step: network, augmentation, rule, step.
MODULES = ("alexnet_jax", "alexnet_jax.paper.train_step", "jax", "flax.linen", "torch")


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    python = statistics.median(seconds("-c", "") for _ in range(REPEATS))
    rounds = [{name: seconds("-c", f"import {name}") - python for name in MODULES} for _ in range(REPEATS + 1)]
    imports = {name: statistics.median(of[name] for of in rounds[1:]) for name in MODULES}  # the first fills the disk's
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = f"--compilation_cache={Path(folder) / 'cache'}"
        # The first draws the built-in data set, and does not count.
        for name, flags in {"drawing": [], "without": [], "first with": [cache], "second with": [cache]}.items():
            workdir = f"--workdir={Path(folder) / name}"
            runs[name] = seconds("-m", "alexnet_jax.main", workdir, "--epochs=0.001", *flags)
    save("startup", import_seconds=imports, one_step_run_seconds=runs)


if __name__ == "__main__":
    main()
