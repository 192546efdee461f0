"""Where a device's time goes in a training step, kernel by kernel, beside the bytes that each of them moves.

  python experiments/step_profile.py --precision=bfloat16 --batch=1024     on a GPU, two minutes
  python experiments/step_profile.py --table=CIFAR-sized --batch=32        tried on a CPU, half a minute

The times are those of JAX's profiler; kernels and bytes are those of the compiled program, as compiled.py counts them
where there is no device. What is not of a kernel's own is the host's, or waiting. Expected on a GPU: each kernel takes
about as long as its bytes do, or its products, and nothing waits.
"""

import argparse
import collections
import itertools
import re
import tempfile
from pathlib import Path

import jax
from contenders import TABLES, Case, stepping, training
from program_text import traffic
from record import save

STEPS, SHOWN = 10, 40


def seconds_of_kernels(folder: Path) -> dict[str, float]:
    """Of all of them, by their instruction's name in the program, as the profiler wrote them into the folder."""
    found: collections.Counter[str] = collections.Counter()
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for event in itertools.chain.from_iterable(line.events for line in plane.lines):
                if kernel := dict(event.stats).get("hlo_op"):
                    found[str(kernel)] += event.duration_ns / 1e9
    return found


def layer_of(source: str) -> str:
    """The layer that an operation's name says, and whether it is of the way back."""
    layer = re.search(r"\b((?:conv|fc)\d+)\b", source)
    return f"{layer[1] if layer else 'others'}{', backward' if 'transpose(' in source else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, default="paper")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    step, state, batch = training(Case("train", given.table, given.precision, given.batch))
    moved = {
        name.split()[-1]: (of, source) for of, name, source in traffic(step.lower(state, batch).compile().as_text())
    }
    one_step = stepping(step, state, batch)
    for _ in range(2):
        jax.block_until_ready(one_step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                jax.block_until_ready(one_step())
        seconds = seconds_of_kernels(Path(folder))
    layers: collections.Counter[str] = collections.Counter()
    kernels = []
    for name, of in sorted(seconds.items(), key=lambda of: -of[1]):
        amount, source = moved.get(name, (0, ""))
        layers[layer_of(source)] += of
        row = {"kernel": name, "ms": round(1e3 * of / STEPS, 4), "megabytes": round(amount / 1e6, 1), "of": source}
        kernels.append(row)
    for layer, of in layers.most_common():
        print(f"{1e3 * of / STEPS:9.2f} ms  {layer}")
    for row in kernels[:SHOWN]:
        print(f"{row['ms']:9.3f} ms {row['megabytes']:9.1f} MB  {row['kernel']:40} {row['of'][-80:]}")
    save(
        f"step_profile_{jax.default_backend()}", device=jax.devices()[0].device_kind, table=given.table,
        precision=given.precision, batch=given.batch, kernels=kernels[:SHOWN],
        ms_of_layers={name: round(1e3 * of / STEPS, 3) for name, of in layers.most_common()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
