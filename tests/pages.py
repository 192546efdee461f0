"""Runs what a page shows in Python: python tests/pages.py README.md, anywhere the package is installed."""

import functools
import re
import sys
from pathlib import Path

import jax

from alexnet_jax.data import datasets


def run(page: Path) -> dict:
    """Runs the code of a page in the current folder, except that its loops are short; the names that it leaves."""
    module = type(sys)("page")  # steps of one's own are written by the module that they are in
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    with jax.numpy_dtype_promotion("standard"):  # as users have it, and optax's schedules need it
        for block in blocks:
            exec(block.replace("range(500)", "range(2)"), vars(module))
    return vars(module)


if __name__ == "__main__":
    datasets.builtin_shapes = functools.partial(datasets.builtin_shapes, 32, 10)
    run(Path(sys.argv[1]))
