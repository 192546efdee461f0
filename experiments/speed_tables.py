"""The tables of how fast things are, from the logs in results/; tables.py writes them."""

from typing import Any

from contenders import CONTENDERS
from intervals import paired_ratio
from record import RESULTS, log, table, where

from alexnet_jax.config import ARCHITECTURE_NAMES


def jpeg_decoders() -> str:
    values = log("jpeg_decoders")
    rows = [[name, values["decoder_versions"][name], f"{rate:,}"] for name, rate in values["images_per_second"].items()]
    note = f"{values['images']} images of {values['mean_bytes'] / 1000:.0f} kB, one core; {where(values)}."
    return f"{table(['library', 'version', 'images/s'], rows)}\n\n{note}"


def prepare_speed() -> str:
    values = log("prepare_speed")
    rows = []
    for rates in values["rates"]:
        seconds = [f"{seconds:.0f} s" for seconds in rates["seconds"].values()]
        rows.append([rates["workers"], f"{rates['images_per_second']:,}", *seconds])
    sizes = [f"{int(images):,} images" for images in values["largest_process_mb"]]
    memory = [f"{peak} MB" for peak in values["largest_process_mb"].values()]
    note = (
        f"JPEGs of 500 × 375, {values['photographs']} photographs repeated, "
        f"{values['mean_source_bytes'] / 1000:.0f} kB. The largest process took "
        f"{' and '.join(f'{peak} for {size}' for peak, size in zip(memory, sizes, strict=True))}; {where(values)}."
    )
    return f"{table(['worker processes', 'images/s without start-up', *sizes], rows)}\n\n{note}"


def input_speed() -> str:
    values = log("input_speed")
    medians = {(r["encoding"], r["reader"], r["workers"]): r["median"] for r in values["images_per_second"]}
    workers = sorted({of for _, _, of in medians})
    rows, notes = [], []
    for encoding in ("jpeg", "raw"):
        best: dict[bool, int] = {}
        for reader in dict.fromkeys(reader for of, reader, _ in medians if of == encoding):
            rates = [medians[encoding, reader, of] for of in workers]
            rows.append([encoding, reader, *(f"{rate:,}" for rate in rates)])
            if reader != "alexnet_jax, not decoded":
                ours = reader == "alexnet_jax"
                best[ours] = max(best.get(ours, 0), *rates)
        notes.append(f"{encoding}: {best[True] / best[False]:.2f} times the DataLoader's best.")
    versions = ", ".join(f"{name} {version}" for name, version in values["other_versions"].items())
    kilobytes = ", ".join(f"{encoding} {size / 1000:.0f} kB" for encoding, size in values["mean_bytes"].items())
    notes.append(f"256 × 256 pixels ({kilobytes}), batches of {values['batch_size']}; {where(values)}, {versions}.")
    header = ["images/s", "read by", *(f"{of} workers" if of > 1 else "1 worker" for of in workers)]
    return f"{table(header, rows)}\n\n{' '.join(notes)}"


def throughput() -> str:
    rows, notes = [], []
    for name in ("cpu", "cpu_newest", "gpu"):
        if not (RESULTS / f"throughput_{name}.json").exists():
            notes += ["Not measured on a GPU."] if name == "gpu" else []
            continue
        values = log(f"throughput_{name}")
        for row in values["rows"]:
            rates = {of: row["results"][of]["images_per_second"] if of in row["results"] else 0 for of in CONTENDERS}
            ours, obvious = rates["alexnet_jax"], rates["obvious Flax"]
            best = max((of for of in CONTENDERS if of.startswith("PyTorch")), key=rates.__getitem__)
            times = [row["results"][of]["seconds_by_turn"] for of in (best, "alexnet_jax")]
            rows.append(
                [
                    f"{'training' if row['task'] == 'train' else 'inference'}, `{row['table']}`",
                    f"{row['precision']}, {row['batch']}",
                    values["versions"]["jax"],
                    *(f"{rate:,.{1 if rate < 100 else 0}f}" if rate else "" for rate in rates.values()),
                    paired_ratio(*times).text(form=".2f"),
                    f"{ours / obvious:.1f}" if obvious else "",
                    f"{row['results']['alexnet_jax']['model_tflops'] / values['ceiling_tflops'][row['precision']]:.0%}",
                ]
            )
        turns = len(values["rows"][0]["results"]["alexnet_jax"]["seconds_by_turn"])
        ceilings = ", ".join(f"{rate:.3f} TFLOP/s in {of}" for of, rate in values["ceiling_tflops"].items())
        notes.append(
            f"{name[:3].upper()}: interleaved, medians of {turns} turns; × PyTorch's best: mean over the turns, 95 % "
            f"interval; matrix products reach {ceilings}; {where(values)}, PyTorch {values['torch']}."
        )
    header = [
        "images/s", "precision, batch", "jax", *CONTENDERS, "× PyTorch's best", "× obvious Flax",
        "of matrix products' rate",
    ]  # fmt: skip
    return f"{table(header, rows)}\n\n{' '.join(notes)}"


def throughput_costs() -> str:
    values = log("throughput_cpu")
    rows = [
        [
            f"{'training' if row['task'] == 'train' else 'inference'}, `{row['table']}`",
            f"{row['precision']}, {row['batch']}",
            name,
            f"{of['compile_seconds']:.1f} s",
            f"{of['first_step_seconds']:.1f} s",
            f"{of['peak_mb']:,.0f} MB",
            "–".join(f"{row['batch'] / at(of['seconds_by_turn']):,.1f}" for at in (max, min)),
        ]
        for row in values["rows"]
        for name, of in row["results"].items()
    ]
    header = ["", "precision, batch", "", "compiling", "until the first step is done", "peak memory of the process",
              "images/s, slowest and fastest"]  # fmt: skip
    return f"{table(header, rows)}\n\n{where(values)}."


def breakdown() -> str:
    values = log("breakdown_cpu")
    ceiling = values["ceiling_tflops"] * 1e12
    kinds = list(values["layers"][0]["seconds"])
    rows = []
    for layer in values["layers"]:
        ideal = 1e9 * layer["gflop_of_each_product"] / ceiling
        cells = []
        for kind, of in layer["seconds"].items():
            share = "" if kind.startswith("steps") else f" ({ideal / of:.0%})" if of else ""
            cells.append(f"{1e3 * of:.0f}{share}" if of else "")
        rows.append([layer["layer"], *cells, f"{1e3 * sum(layer['seconds'].values()):.0f}"])
    sums = [sum(layer["seconds"][kind] for layer in values["layers"]) for kind in kinds]
    rows.append(["all layers", *(f"{1e3 * of:.0f}" for of in sums), f"{1e3 * sum(sums):.0f}"])
    rows += [[name, *[""] * len(kinds), f"{1e3 * of:.0f}"] for name, of in values["others"].items()]
    total = sum(sums) + sum(values["others"].values())
    note = (
        f"Milliseconds at batch {values['batch']}, float32; in brackets, of the rate of matrix products "
        f"({values['ceiling_tflops']:.3f} TFLOP/s). The parts add up to {total:.2f} s, each timed alone; the whole "
        f"step takes {values['whole_step']:.2f} s; {where(values)}."
    )
    return f"{table(['', *kinds, 'together'], rows)}\n\n{note}"


def startup() -> str:
    values = log("startup")
    imports = ", ".join(f"`{name}` {of:.1f} s" for name, of in values["import_seconds"].items())
    runs = values["one_step_run_seconds"]
    return (
        f"Imports: {imports}. A run of one step, evaluation and pictures included: {runs['without']:.0f} s; "
        f"with `--compilation_cache` {runs['first with']:.0f} s the first time and {runs['second with']:.0f} s from "
        f"then on; {where(values)}."
    )


def prediction_speed() -> str:
    if not (RESULTS / "prediction_speed.json").exists():
        return "Not measured yet: `python experiments/prediction_speed.py`."
    values = log("prediction_speed")
    rows = []
    for name, of in values["networks"].items():
        rates = [f"{rate:,.0f}" for rate in of["images_per_second"].values()]
        shares = [f"{100 * of[share]:.0f} %" for share in ("of_the_slower_one", "of_what_the_same_cores_can")]
        is_apart = name not in ARCHITECTURE_NAMES  # and shares no core
        rows.append([name if is_apart else f"`{name}`", *rates, shares[0], "" if is_apart else shares[1]])
    header = ["pictures/s", "inference alone", "reading alone", "both, as `predict` does", "of the slower one"]
    note = (
        f"{values['photographs']} photographs, each {values['times']} times, in batches of {values['batch']}, "
        f"median of {values['repeats']}; {where(values)}."
    )
    return f"{table([*header, 'of what the same cores can'], rows)}\n\n{note}"


def feeding() -> str:
    header = ["images/s", "device", "batch", "type"]
    rows: list[list[Any]] = []
    notes = []
    for platform in ("cpu", "gpu"):
        if not (RESULTS / f"feeding_{platform}.json").exists():
            notes.append(f"Not measured on a {platform.upper()}.")
            continue
        values = log(f"feeding_{platform}")
        rates = values["images_per_second"]
        header = [*header[:4], *rates]
        rows.append([f"`{values['architecture']}`", values["device"], values["batch_size"], values["dtype"]])
        rows[-1] += [f"{rate:,.1f} ({100 * rate / rates['synthetic']:.0f} %)" for rate in rates.values()]
        notes.append(f"{where(values)}.")
    return f"{table(header, rows)}\n\n{' '.join(notes)}"


def compiled() -> str:
    before = {
        (row["target"], *(row[of] for of in ("task", "precision", "batch", "devices"))): row
        for row in log("compiled_version_01")["rows"]
    }
    rows, notes = [], []

    def gigabytes(row: dict[str, Any] | None) -> str:
        if not row:
            return ""
        by_xla = [row.get(of) for of in ("gigabytes_by_xla", "gigabytes_by_xla_without_copies")]
        return f"{row['gigabytes']}" + (f" ({', '.join(str(of) for of in by_xla if of)})" if any(by_xla) else "")

    for target in ("h100", "v5e", "v6e", "v4"):
        if not (RESULTS / f"compiled_{target}.json").exists():
            notes.append(f"Not compiled for {target}.")
            continue
        values = log(f"compiled_{target}")
        for row in values["rows"]:
            if row["task"] != "train" and (row["task"], row["devices"], row["batch"]) != ("evaluate", 1, 1024):
                continue  # these are in the logs; of ten views, which are a loop, the count says nothing
            same = before.get((target, row["task"], row["precision"], row["batch"], row["devices"]))
            rows.append(
                [
                    f"{target}, {row['devices']}", row["task"], f"{row['precision']}, {row['batch']:,}",
                    gigabytes(row), gigabytes(same), row["least_gigabytes"], row["memory_ms"], row["computing_ms"],
                    row["peak_gigabytes"], row["compile_cpu_seconds"],
                ]
            )  # fmt: skip
        notes.append(f"Compiled for {target} by jax {values['versions']['jax']}, {values['date']}.")
    header = [
        "for, devices", "task", "precision, batch", "GB moved by each (by XLA's account, and without copies ahead)",
        "version 0.1", "least", "memory, ms", "computing, ms", "peak GB", "compiled in CPU-s",
    ]  # fmt: skip
    return f"{table(header, rows)}\n\n{' '.join(notes)}"
