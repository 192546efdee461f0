"""What a page shows in Python."""

import re
import sys
from pathlib import Path

import jax


def run(page: Path) -> dict:
    """Runs the code of a page in the current folder, except that its loops are short; the names that it leaves."""
    module = type(sys)("page")  # steps of one's own are written by the module that they are in
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    with jax.numpy_dtype_promotion("standard"):  # as users have it, and optax's schedules need it
        for block in blocks:
            exec(block.replace("range(500)", "range(2)"), vars(module))
    return vars(module)
