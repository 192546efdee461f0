"""Tables of docs/parallel.md on hosts and large batches, from the logs in results/; tables.py writes them."""

from typing import Any

from intervals import difference
from record import RESULTS, log, mean_and_std, table, where
from scaling_model import BATCHES, MACHINES, bytes_sent, images_where_even, seconds_computing, speedup

NOT_YET = "Not measured yet."
NAMES = {
    "float32": "data parallel",
    "bfloat16": "data parallel, gradients in bfloat16",
    "dense": "dense layers in columns",
    "columns": "all layers in two columns",
}


def scaling() -> str:
    """Bytes, the exchange alone and the whole step, by hosts, kind and link."""
    if not (RESULTS / "scaling.json").exists():
        return NOT_YET
    values = log("scaling")
    alone = _mean(values["rows"][0]["step"])
    rows = []
    for row in values["rows"][1:]:
        seconds, least = _mean(row["exchange"]), bytes_sent(row["kind"], row["hosts"], values["batch_per_host"])
        sent = (least, sum(row["bytes_by_kind"].values()), row["exchange"]["bytes_on_the_wire"])
        rows.append(
            [row["hosts"], NAMES[row["kind"]], f"{row['gigabits']:g} Gbit/s", *(f"{of / 1e6:.1f}" for of in sent),
             f"{8 * least / row['gigabits'] / 1e9:.2f}", f"{seconds:.2f}", _against_float32(values["rows"], row),
             f"{_mean(row['step']):.1f}"]
        )  # fmt: skip
    header = [
        "hosts", "how", "link", "MB that each sends a step: on paper", "in the compiled program", "on the wire",
        "seconds for that, on paper", "exchange alone, s", "times shorter", "whole step, s",
    ]  # fmt: skip
    note = (
        f"`paper`, {values['batch_per_host']} images a host, {values['cores_per_host']:g} of a core a host; one host "
        f"alone: {alone:.1f} s a step. Times shorter: than float32's on the same link. Mean of "
        f"{len(values['rows'][1]['exchange']['seconds'])} exchanges and of "
        f"{len(values['rows'][0]['step']['seconds'])} steps; {where(values)}."
    )
    return f"{table(header, rows)}\n\n{note}"


def _mean(of: dict[str, Any]) -> float:
    return sum(of["seconds"]) / len(of["seconds"])


def _against_float32(rows: list[dict[str, Any]], row: dict[str, Any]) -> str:
    of = {(one["hosts"], one["gigabits"]): one for one in rows if one["kind"] == "float32"}
    before = of[row["hosts"], row["gigabits"]]
    return "" if row is before else f"{_mean(before['exchange']) / _mean(row['exchange']):.1f}"


def scaling_model() -> str:
    """What scaling_model.py says of machines that are not here."""
    rows = []
    for machine in MACHINES:
        for kind in ("float32", "bfloat16", "dense"):
            row = [machine.name, NAMES[kind]]
            for batch in BATCHES:
                sent = bytes_sent(kind, machine.devices, batch, width=2)
                exchange, times = speedup(machine, kind, batch)
                milliseconds = (1e3 * exchange, 1e3 * seconds_computing(machine, batch))
                row += [f"{sent / 1e6:.0f}", *map(_two_digits, milliseconds), _two_digits(times)]
            rows.append(row)
    header = ["machine", "how"]
    for batch in BATCHES:
        sent = f"{batch:,} images a device: MB that each sends"
        header += [sent, "exchange, ms", "computation, ms", "times one device"]
    even = {of: images_where_even(of, width=2) for of in sorted({machine.devices for machine in MACHINES})}
    note = (
        "Dividing the dense layers makes a device send less than all gradients in float32 do up to "
        f"{' and '.join(f'{images:.0f} images a device on {of} devices' for of, images in even.items())}; "
        f"with activations in float32 up to {images_where_even(2):.0f} on two."
    )
    return f"{table(header, rows)}\n\n{note}"


def _two_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def large_batches() -> str:
    """The error by batch and rule, and its difference to that of the small batch."""
    if not (RESULTS / "large_batches.json").exists():
        return NOT_YET
    values = log("large_batches")
    errors = {name: [of["result"]["top1_error"] for of in found] for name, found in values["results"].items()}
    first, rows = errors[values["first"]], []
    for name, found in sorted(errors.items(), key=lambda of: int(of[0].split(", ")[1])):
        rule, batch = name.split(", ")
        rate = f", rate {values['lars_rates'][batch]:g}" if rule == "LARS" else ""
        apart = "" if name == values["first"] else difference(found, first)
        shown = [apart.text(100), apart.verdict()] if apart else ["", ""]
        rows.append([batch, rule + rate, f"{mean_and_std(100 * of for of in found)} %", *shown])
    header = ["batch", "rule", "test error", f"against the batch of {values['first'].split(', ')[1]}, points", ""]
    note = (
        f"CIFAR-10, 10,000 training images, {values['epochs']:g} epochs; seeds {', '.join(map(str, values['seeds']))}, "
        f"mean ± standard deviation, 95 % intervals; "
        f"{'; '.join(dict.fromkeys(where(of) for found in values['results'].values() for of in found))}."
    )
    return f"{table(header, rows)}\n\n{note}"
