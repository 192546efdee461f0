"""More than one host: what a step of `paper` takes on two and on four, by how they work together, against one.

  python experiments/scaling.py        a quarter of an hour on two cores, 10 GB; Linux, as root, with `ip` and `tc`
  … --hosts=2 --kind=float32           a part of it, and no log

Each host is a process in a network namespace of its own (hosts.py), with half a core, whether there are one, two or
four: so the exchange is compared, and not the computation. 128 images a host. They exchange over gloo, as several hosts
of CPUs do, through links of 1 and 10 Gbit/s. Measured are the step of `fit`, on the same images again and again; and
the exchange alone: a program of the same exchanges, in the same order, of arrays of the same sizes and types, as they
stand in the program that XLA compiled for the step. A step is computed in as many seconds as it takes half a core, and
varies with them; the exchange is the cleaner number. Bytes are those that the interface counts, with the headers of
TCP; beside them what the compiled program asks each host to send, in a ring.

Expected: at 1 Gbit/s and two hosts the gradients take two seconds in float32. Hosts compile with all cores, and have
half a core after that.
"""

import argparse
import contextlib
import dataclasses
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hosts import Hosts, address, hosts
from jax import lax
from program_text import SENT, bytes_sent
from record import save

from alexnet_jax import PAPER, PRESETS, Metrics, init_state, open_dataset
from alexnet_jax.device import parallel
from alexnet_jax.device.hosts import start as join
from alexnet_jax.train import with_input
from alexnet_jax.train_setup import set_up

BATCH, SHARE, PORT = 128, 0.5, 9311
LINKS = (1.0, 10.0)  # gigabits a second
KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"exchange_precision": "bfloat16"},
    "dense": {"dense_parallel": True},
    "columns": {"columns_parallel": True},
}
EXCHANGES, STEPS = 5, 1
TYPES = {"f32": jnp.float32, "s32": jnp.int32, "u32": jnp.uint32, "u16": jnp.uint16}  # XLA sends no bf16 on CPUs

Exchange = tuple[str, list[tuple[str, int]]]  # its kind, and (type, numbers) of each of its results


def exchanges(text: str) -> list[Exchange]:
    """Those of a compiled program, in its order."""
    found = re.findall(rf"= (\([^)]*\)|\S+) ({'|'.join(SENT)})(?:-start)?\(", text)
    shapes = [(kind, re.findall(r"\b([a-z]+\d+)\[([\d,]*)\]", shape)) for shape, kind in found]
    return [
        (kind, [(of, int(np.prod([int(length) for length in dims.split(",") if length]))) for of, dims in results])
        for kind, results in shapes
    ]


def replay(found: Sequence[Exchange], devices: Sequence[jax.Device]) -> tuple[Callable, list[list[jax.Array]]]:
    """A program of the same exchanges, one after the other, and what it takes on this host."""
    number = len(devices)
    ring = [(of, (of + 1) % number) for of in range(number)]
    exchange: dict[str, Callable] = {
        "all-gather": lambda x: lax.all_gather(x, parallel.AXIS, tiled=True),
        "reduce-scatter": lambda x: lax.psum_scatter(x, parallel.AXIS, tiled=True),
        "all-reduce": lambda x: lax.psum(x, parallel.AXIS),
        "all-to-all": lambda x: lax.all_to_all(x, parallel.AXIS, 0, 0, tiled=True),
        "collective-permute": lambda x: lax.ppermute(x, parallel.AXIS, ring),
    }
    given = {"all-gather": lambda numbers: numbers // number, "reduce-scatter": lambda numbers: numbers * number}

    def all_in_order(arrays: list[list[jax.Array]]) -> list[list[jax.Array]]:
        done: list[list[jax.Array]] = []
        for (kind, _), of in zip(found, arrays, strict=True):
            of, done[-1:] = lax.optimization_barrier((of, done[-1:]))
            done.append([exchange[kind](array) for array in of])
        return done

    def array(kind: str, of: str, numbers: int) -> jax.Array:
        return jnp.ones((1, given.get(kind, int)(numbers)), TYPES[of])

    arrays = [[array(kind, *result) for result in _whole(kind, results)] for kind, results in found]
    return jax.pmap(all_in_order, parallel.AXIS, devices=devices), arrays


def _whole(kind: str, results: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Of an exchange of all with all, which comes in parts, the one array."""
    return [(results[0][0], sum(numbers for _, numbers in results))] if kind == "all-to-all" else results


def work(kind: str, number: int, host: int, workdir: Path) -> None:
    """One of so many hosts: tells what its step sends, and then does what it is told, and tells the seconds."""
    if number > 1:
        join(f"{address(0)}:{PORT}", number, host, timeout=600.0)
    config = dataclasses.replace(PRESETS["paper"], batch_size=BATCH * number, **KINDS[kind])
    with contextlib.ExitStack() as held:
        run = set_up(PAPER, open_dataset("shapes"), config, workdir, None, None, Metrics(), None, held)
        step, batches = with_input(run.step, config, run.dataset, run.spread, range(1000))
        state, batch = run.spread.put(init_state(run.net, run.optimizer)), next(run.sent(batches))
        program = step.lower(state, batch).compile().as_text()
        sent = bytes_sent(program, number)
        if sent:  # a host alone sends nothing
            exchange, arrays = replay(exchanges(program), parallel.all_devices())
            assert bytes_sent(exchange.lower(arrays).compile().as_text(), number) == sent
        tell({"bytes_by_kind": sent, "exchanges": len(exchanges(program))})
        for line in sys.stdin:
            start = time.perf_counter()
            if line.strip() == "step":
                state, metrics = step(state, batch)
                jax.block_until_ready(metrics)
            else:
                jax.block_until_ready(exchange(arrays))
            tell({"seconds": time.perf_counter() - start})


def tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def told(process: subprocess.Popen) -> dict[str, Any]:
    """The next that a host tells; what else stands on its output is passed over."""
    for line in process.stdout or ():
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError("a host has ended")


def times(all_hosts: Hosts, processes: Sequence[subprocess.Popen], what: str, repeats: int) -> dict[str, Any]:
    """Seconds of each, until the last host has ended it; and the bytes that a host sent, of the mean one."""
    seconds, before = [], all_hosts.sent()
    for _ in range(repeats):
        for process in processes:
            assert process.stdin
            process.stdin.write(f"{what}\n")
        seconds.append(max(told(process)["seconds"] for process in processes))
    sent = statistics.mean(after - first for after, first in zip(all_hosts.sent(), before, strict=True)) / repeats
    return {"seconds": [round(one, 4) for one in seconds], "bytes_on_the_wire": round(sent)}


def measured(number: int, kind: str) -> list[dict[str, Any]]:
    """A row for each link."""
    rows = []
    with hosts(number) as all_hosts, tempfile.TemporaryDirectory() as workdir:
        own = [sys.executable, __file__, "--work", kind, str(number)]
        processes = [all_hosts.start(host, [*own, str(host), f"{workdir}/run"]) for host in range(number)]
        try:
            program, *_ = [told(process) for process in processes]
            for what in ("exchange", "step") if number > 1 else ("step",):  # the first of each
                times(all_hosts, processes, what, 1)
            all_hosts.share(SHARE)
            for link in LINKS if number > 1 else LINKS[:1]:
                all_hosts.limit(link)
                rows.append({"hosts": number, "kind": kind, "gigabits": link, **program})
                if number > 1:
                    rows[-1]["exchange"] = times(all_hosts, processes, "exchange", EXCHANGES)
                rows[-1]["step"] = times(all_hosts, processes, "step", STEPS)
                print(rows[-1], flush=True)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        kind, number, host, workdir = sys.argv[2:]
        return work(kind, int(number), int(host), Path(workdir))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, choices=(1, 2, 4))
    parser.add_argument("--kind", choices=KINDS)
    arguments = parser.parse_args()
    open_dataset("shapes")  # made once, not by all at once
    rows = []
    for number in [arguments.hosts] if arguments.hosts else (1, 2, 4):
        possible = ["float32"] if number == 1 else [kind for kind in KINDS if number == 2 or kind != "columns"]
        for kind in [arguments.kind] if arguments.kind else possible:
            rows += measured(number, kind)
    if not arguments.hosts and not arguments.kind:
        save("scaling", device="cpu", batch_per_host=BATCH, cores_per_host=SHARE, rows=rows)


if __name__ == "__main__":
    main()
