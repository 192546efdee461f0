"""The tables of docs/parallel.md."""

import statistics
from typing import Any

from intervals import difference
from record import RESULTS, log, mean_and_std, table, where

FLAGS = {
    "data parallel": "none",
    "data parallel, gradients in bfloat16": "`--exchange_precision=bfloat16`",
    "dense layers in columns": "`--dense_parallel`",
    "all layers in two columns": "`--columns_parallel`",
}


def exchange() -> str:
    values = log("exchange")
    numbers = sorted({run["devices"] for run in values["sent"]})
    total = {(run["way"], run["devices"]): sum(run["sent"].values()) / 1e6 for run in values["sent"]}

    def cells(way: str) -> list[str]:
        return [f"{total[way, number]:.1f}" if (way, number) in total else "–" for number in numbers]

    rows = [[way, flag, *cells(way)] for way, flag in FLAGS.items()]
    header = ["way", "flag", *(f"{number} devices" for number in numbers)]
    note = (
        f"Megabytes that each device sends in a training step of `paper`, at {values['batch_a_device']} images a "
        f"device: counted in the programs that XLA compiled for CPUs, as a ring sends them; {where(values)}."
    )
    return f"{table(header, rows)}\n\n{note}"


def exchange_precision() -> str:
    if not (RESULTS / "exchange_precision.json").exists():
        return "Not run yet: `python experiments/exchange.py --losses`."
    values = log("exchange_precision")
    runs = {
        name: [run for run in values["runs"] if run["exchange_precision"] == name] for name in ("float32", "bfloat16")
    }
    steps = list(runs["float32"][0]["loss"])
    apart = [
        statistics.mean(run["loss"][step] for run in runs["bfloat16"])
        - statistics.mean(run["loss"][step] for run in runs["float32"])
        for step in steps
    ]
    noise = [statistics.stdev(run["loss"][step] for run in runs["float32"]) for step in steps]
    nll = difference(*([run["nll"] for run in runs[name]] for name in ("bfloat16", "float32")))
    found = {name: mean_and_std((run["nll"] for run in of), ".3f") for name, of in runs.items()}
    return (
        f"In runs of a small network on the built-in shapes over {values['devices_of_runs']} devices, {steps[-1]} "
        f"steps, {len(runs['float32'])} seeds, the training loss with gradients sent in bfloat16 differed by "
        f"{max(map(abs, apart)):.4f} at most (means over the seeds, of half an epoch), where the seeds' standard "
        f"deviation is {statistics.mean(noise):.4f}; the validation loss was {found['bfloat16']} against "
        f"{found['float32']} nats, a difference of {nll.text(1, '+.4f')} (95 % interval), {nll.verdict()}; "
        f"{where(values)}."
    )


def exchange_overlap() -> str:
    if not (RESULTS / "exchange_v5e.json").exists():
        return "Not run yet: `python experiments/exchange.py --target=v5e`."
    values = log("exchange_v5e")

    def cells(found: dict[str, Any]) -> list[Any]:
        beside = found["beside kernels"]
        busy = [of["kernels"] for of in beside if of["kernels"]]
        return [len(found["at once"]), len(beside), len(busy), max(busy, default=0)]

    rows = [[way, *cells(found)] for way, found in values["ways"].items()]
    header = ["way", "exchanges at once", "started and awaited", "of these beside kernels", "kernels, at most"]
    note = f"Programs for {values['devices']}, {values['batch_a_device']} images each; {where(values)}."
    return f"{table(header, rows)}\n\n{note}"
