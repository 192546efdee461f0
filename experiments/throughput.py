"""How fast the network is trained and asked: this package, the obvious Flax code and PyTorch, in turns.

  pip install torch                    (on a GPU, its CUDA build)
  python experiments/throughput.py     half an hour on two cores
  python experiments/throughput.py --quick                        under two minutes
  python experiments/throughput.py --precisions=bfloat16,float32 --batches=1024,128      on a GPU
  python experiments/throughput.py --log=throughput_cpu_newest --pytorchs_python=PYTHON  where PyTorch is elsewhere

Each contender lives in a process of its own, which waits while another computes; medians of the repeats, and ratios of
what was measured in the same turn, since the rate of a rented core changes by the minute. On a CPU all have as many
threads as there are cores. A training step is forward, backward and update (momentum, weight decay) on
images that lie on the device; this package's also augments them: its input is uint8, 256 × 256, the others' float32, of
the network's size. Inference is the forward pass in test mode, of float32 images. Model FLOP/s count multiplications
and additions of convolutions and dense layers: forward once, and backward twice, but for the images' gradient, which
nobody computes. The ceiling is the best rate of square matrix products in JAX. Expected on two cores, float32, batch
128, `paper`: at least 1.3 times PyTorch's best mode and 6 times the obvious code.
"""

import argparse
import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from contenders import CONTENDERS, TABLES, Case, build, threads
from record import save

from alexnet_jax.device import xla


def peak_megabytes(contender: str) -> float:
    if contender.startswith("PyTorch"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
    elif (stats := jax.local_devices()[0].memory_stats()) and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def work(contender: str, case: Case, inner: int) -> None:
    """A worker: builds its step, and does `inner` of them for each line that it reads; answers in JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr  # where libraries may print
    start = time.perf_counter()
    step = build(contender, case)
    built = time.perf_counter()
    jax.block_until_ready(step())
    first = time.perf_counter()
    jax.block_until_ready(step())
    second = time.perf_counter() - first
    values = {"compile_seconds": first - built - second, "first_step_seconds": first - start}
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(inner):
            result = step()
        jax.block_until_ready(result)
        values["seconds"] = (time.perf_counter() - start) / inner
        values["peak_mb"] = peak_megabytes(contender)
        print(json.dumps(values), file=answers, flush=True)


# Settings of this shell that would slow one of the contenders down, or give it fewer threads.
SETTINGS = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "NVPL_", "DNNL_", "ONEDNN_")


def measured(case: Case, contenders: list[str], repeats: int, inner: int, pytorchs: str) -> dict[str, Any]:
    """Of each contender: images/s, the median of the repeats, which are done in turns; and what it took.

    pytorchs: the interpreter of its workers.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    workers, answers = {}, {}
    for contender in contenders:
        interpreter = pytorchs if contender.startswith("PyTorch") else sys.executable
        command = [interpreter, __file__, "--work", json.dumps([contender, dataclasses.asdict(case), inner])]
        pipe = subprocess.PIPE
        workers[contender] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        answers[contender] = [ask(workers[contender])]  # one after the other, so that none starts beside another
    for _ in range(repeats):
        for contender, worker in workers.items():
            answers[contender].append(ask(worker))
    for worker in workers.values():
        worker.communicate()
    results = {}
    for contender, (_, *given) in answers.items():
        seconds = statistics.median(answer["seconds"] for answer in given)
        results[contender] = {
            "images_per_second": case.batch / seconds,
            "seconds_by_turn": [answer["seconds"] for answer in given],
            "model_tflops": case.flop_per_image * case.batch / seconds / 1e12,
            **{name: given[-1][name] for name in ("compile_seconds", "first_step_seconds", "peak_mb")},
        }
        print(f"{case} {contender}: {case.batch / seconds:.1f} images/s", flush=True)
    return results


def ask(worker: subprocess.Popen) -> dict[str, float]:
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write("\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def ceiling(precision: str) -> float:
    """TFLOP/s of the best square matrix product."""
    best = 0.0
    for size in (1024, 2048, 4096) if jax.default_backend() == "cpu" else (4096, 8192, 16384):
        a = jnp.ones((size, size), precision)
        for options in ({}, xla.compiler_options()):
            product = jax.jit(jnp.matmul, compiler_options=options).lower(a, a).compile()
            for _ in range(4):
                start = time.perf_counter()
                jax.block_until_ready(product(a, a))
                best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e12)
    return best


def cases(tasks: list[str], tables: list[str], precisions: list[str], batches: list[int]) -> Iterator[Case]:
    for table, precision, batch, task in itertools.product(tables, precisions, batches, tasks):
        if (task, table) != ("infer", "CIFAR-sized"):
            yield Case(task, table, precision, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="train,infer")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--precisions", default="float32")
    parser.add_argument("--batches", default="128")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--inner", type=int, default=0, help="steps of a repeat; 0: 1 on a CPU, 20 on a GPU")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--pytorchs_python", default=sys.executable, help="an interpreter that has PyTorch, too")
    parser.add_argument("--log", help="its name; throughput_cpu or throughput_gpu by default")
    parser.add_argument("--quick", action="store_true", help="only a few, small batches; nothing is written")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        contender, case, inner = json.loads(arguments.work)
        return work(contender, Case(**case), inner)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # this process and the workers share a GPU
    platform = jax.default_backend()
    if arguments.quick:
        arguments.tables, arguments.batches, arguments.repeats = "CIFAR-sized", "32", 3
    batches = [int(batch) for batch in arguments.batches.split(",")]
    tables, precisions, contenders = (
        getattr(arguments, name).split(",") for name in ("tables", "precisions", "contenders")
    )
    inner = arguments.inner or (1 if platform == "cpu" else 20)
    ceilings = {precision: ceiling(precision) for precision in precisions}
    about = {"device": jax.devices()[0].device_kind, "ceiling_tflops": ceilings, "threads": threads(),
             "torch": version_of_pytorch(arguments.pytorchs_python)}  # fmt: skip
    rows = []
    for case in cases(arguments.tasks.split(","), tables, precisions, batches):
        results = measured(case, contenders, arguments.repeats, inner, arguments.pytorchs_python)
        rows.append({**dataclasses.asdict(case), "gflop_per_image": case.flop_per_image / 1e9, "results": results})
        if not arguments.quick:  # after each, since it may be ended early
            save(arguments.log or f"throughput_{platform}", **about, rows=rows)


def version_of_pytorch(interpreter: str) -> str:
    command = [interpreter, "-c", "import torch; print(torch.__version__)"]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout.strip()


if __name__ == "__main__":
    main()
