"""Tables of the experiments on photographs, from the logs in results/; tables.py writes them."""

import ablations as ablation
import table2 as small
from intervals import Interval, difference, of_other_images, paired_difference, share
from record import RESULTS, log, mean_and_std, table, where


def rise(variant: str, kind: str = "top1_error", of: str = "ablations", base: str = "demo") -> Interval:
    """By how much a variant's error is above that of the network that it varies."""
    found, before = ([run["result"][kind] for run in log(of)["results"][name]] for name in (variant, base))
    return difference(found, before)


def ablations() -> str:
    """Errors of each variant, and how much they rose, here and in 2012."""
    values, rows = log("ablations"), []
    for name, trainings in values["results"].items():
        of = [training["result"] for training in trainings]
        kinds = ("training_error", "top1_error", "top5_error")
        errors = [mean_and_std(100 * result[kind] for result in of) + " %" for kind in kinds]
        found = [rise(name, kind) for kind in ("top1_error", "top5_error")] if name != "demo" else []
        verdict = {True: "resolved", False: "not resolved", None: ""}[found[0].resolved if found else None]
        rises = [of.text(100) for of in found] or ["", ""]
        rows.append([name, *errors, *rises, verdict, ablation.VARIANTS[name].imagenet])
    header = [
        "variant", "training error", "top-1", "top-5", "top-1 rises by", "top-5 rises by", "top-1",
        "in 2012, top-1 / top-5",
    ]  # fmt: skip
    kept = values["results"]["demo"][0]
    note = (
        f"{values['epochs']:g} epochs; mean ± standard deviation; seeds {', '.join(map(str, values['seeds']))}; "
        f"differences in points with their 95 % intervals; {where(kept)}."
    )
    return f"{table(header, rows)}\n\n{note}"


def specialised() -> str:
    """How many runs are, and whether that is more than by chance."""
    runs = log("specialisation")["runs"].values()
    special = sum(found["chance"] < 0.05 for found in runs)
    found = share(special, len(runs), null=0.05)
    return (
        f"{special} of {len(runs)} runs are specialised by this measure, {found.text(100, '.0f')} %; by chance it "
        f"would be 5 %: {found.verdict()}."
    )


def specialisation() -> str:
    values = log("specialisation")
    rows = []
    for name in dict.fromkeys(run.rsplit(",", 1)[0] for run in values["runs"]):
        of = [found for run, found in values["runs"].items() if run.rsplit(",", 1)[0] == name]
        means = "; ".join(" and ".join(f"{mean:.2f}" for mean in found["means"]) for found in of)
        rows.append([name, means, "; ".join(f"{found['chance']:.1%}" for found in of)])
    note = f"{specialised()} Of the trainings in the log `ablations`, three seeds each."
    return f"{table(['variant', 'colourfulness of the two GPUs, by run', 'by chance'], rows)}\n\n{note}"


def small_claims() -> str:
    """Of each variant of the small network: how much its errors and losses differ from the whole network's."""
    if not (RESULTS / "small_claims.json").exists():
        return "Not run yet."
    values, rows = log("small_claims"), []
    kinds = {"training_error": (100, "+.1f"), "test_error": (100, "+.1f"), "first_loss": (1, "+.3f")}
    for name, trainings in values["results"].items():
        of = [training["result"] for training in trainings]
        cells = []
        for kind, (scale, form) in kinds.items():
            cells.append(mean_and_std((scale * run[kind] for run in of), form[1:]))
            cells.append("" if name == "small" else rise(name, kind, "small_claims", "small").text(scale, form))
        rows.append([name, *cells])
    header = [
        "variant", "training error, %", "against small", "test error, %", "against small",
        "training loss after 100 steps, nats", "against small",
    ]  # fmt: skip
    kept = values["results"]["small"][0]
    note = (
        f"{values['epochs']:g} epochs; mean ± standard deviation; seeds {', '.join(map(str, values['seeds']))}; "
        f"differences with their 95 % intervals; {where(kept)}."
    )
    return f"{table(header, rows)}\n\n{note}"


def kernels_and_neighbors() -> str:
    """How selective learned kernels are, beside random ones; and what the nearest images are."""
    if not (RESULTS / "kernels_and_neighbors.json").exists():
        return "Not run yet."
    values = log("kernels_and_neighbors")
    rows = []
    for kind, above in values["kernels"]["above 95 % of the random ones"].items():
        learned, (mean, std) = values["kernels"]["learned"][kind], values["kernels"]["random"][kind]
        rows.append([kind, mean_and_std(learned, ".2f"), f"{mean:.2f} ± {std:.2f}", f"{100 * above:.0f} %"])
    kernels = table(["selective for", "learned kernels", "random kernels", "above 95 % of the random ones"], rows)
    found = [[name, Interval(*of).text(100, ".1f") + " %"] for name, of in values["neighbors"].items()]
    images = table(["nearest training image", "of the validation images (95 %)"], found)
    note = (
        f"One run, seed {values['seed']}, {values['epochs']:g} epochs; {values['images']:,} validation images; the "
        f"place is the share of all training images that are nearer by pixels; {where(values)}."
    )
    return f"{kernels}\n\n{images}\n\n{note}"


def imagenette() -> str:
    """The paper's network on all of Imagenette."""
    if not (file := next(RESULTS.glob("imagenette_seed*.json"), None)):
        return "Not run yet."
    values = log(file.stem)
    rows = []
    for views, of in values["errors"].items():
        cells = [
            Interval(of[kind], *of["intervals"][kind]).text(scale, form) + unit
            for kind, scale, form, unit in (("top1_error", 100, ".1f", " %"), ("top5_error", 100, ".2f", " %"),
                                            ("nll", 1, ".3f", " nats"))
        ]  # fmt: skip
        rows.append(["ten views" if views == "10" else "the centre", *cells])
    errors = table(["", "top-1 error", "top-5 error", "loss"], rows)

    epochs = {float(epoch): error for epoch, error in values["validation_error_by_epoch"].items()}
    drops, rate = [], values["config"]["learning_rate"]
    for epoch, found in values["rate_by_epoch"].items():
        if found < 0.5 * rate:
            drops.append(f"{float(epoch):.0f}")
            rate = found
    shown = [epoch for epoch in epochs if round(epoch) in (1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 60)]
    curve = table(
        ["epoch", *(f"{epoch:.0f}" for epoch in shown)],
        [["top-1 error, %", *(f"{100 * epochs[epoch]:.1f}" for epoch in shown)]],
    )
    groups = [[kind, *(f"{100 * of:.0f} %" for of in found)] for kind, found in values["selective"].items()]
    groups.append(["colourfulness, mean", *(f"{of:.2f}" for of in values["colorfulness"]["means"])])
    kernels = table(["conv1's kernels", "GPU 1", "GPU 2"], groups)
    found = table(
        ["nearest training image", "of the validation images (95 %)"],
        [[name, Interval(*of).text(100, ".1f") + " %"] for name, of in values["neighbors"].items()],
    )
    note = (
        f"One training, seed {values['config']['seed']}, {values['epochs']:.0f} of {values['config']['epochs']:g} "
        f"epochs; the rate fell after {', '.join(drops) or 'no'} epochs. {values['images']['train']:,} training and "
        f"{values['images']['validation']:,} validation images; in brackets 95 % of bootstrap samples of these. "
        f"Kernels: the share that is more selective for orientation, or for frequency, than 95 % of random ones; "
        f"colourfulness: 0 is blind to colour, 2/3 as at random, and a division at random would be as uneven in "
        f"{values['colorfulness']['chance']:.1%} of cases; {where(values)}."
    )
    return f"{errors}\n\n{curve}\n\n{kernels}\n\n{found}\n\n{note}"


def gain(row: str, kind: str) -> Interval:
    """The difference of a row of Table 2 to that in BEFORE: paired, image by image, where the log has it."""
    values = log("table2")
    if "differences" in values:
        return Interval(*values["differences"][row][kind])
    after, before = (values["results"][name] for name in (row, small.BEFORE[row]))
    return of_other_images(*((of[kind], *of["intervals"][kind]) for of in (after, before)))


def table2() -> str:
    values, rows = log("table2"), []
    for row, found in values["results"].items():
        cells = []
        for kind in ("top1_error", "top5_error"):
            low, high = found["intervals"][kind]
            cells.append(f"{100 * found[kind]:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
        gains = ["", "", ""]
        if row in small.BEFORE:
            gains = [*(gain(row, kind).text(100) for kind in ("top1_error", "top5_error")), small.BEFORE[row]]
        rows.append([row, *cells, *gains, small.ROWS[row][2]])
    on = ", ".join(dict.fromkeys(values["devices"].values()))
    how = (
        "paired, image by image" if "differences" in values else "as if of other images, since the log does not have "
        "the answers image by image: those of the same images are narrower"
    )  # fmt: skip
    note = (
        f"In brackets 95 % of bootstrap samples of the validation images; differences in points, with 95 % intervals "
        f"{how}. One training each. Trained on: {on}; {where(values)}."
    )
    header = ["networks", "top-1", "top-5", "top-1 differs by", "top-5 differs by", "from", "paper, % top-1 / top-5"]
    return f"{table(header, rows)}\n\n{note}"


def fine_tuning() -> str:
    """What weights of other photographs gain, on few and on many."""
    if not (RESULTS / "fine_tuning.json").exists():
        return "Not run yet: `python experiments/fine_tuning.py`."
    values = log("fine_tuning")
    rows = []
    for of in values["results"].values():
        new = [100 * run["result"]["top1_error"] for run in of["new"]]
        images, epochs = f"{of['new'][0]['result']['images']:,}", f"{of['new'][0]['result']['epochs']:.0f}"
        for way in (way for way in of if way != "new"):
            errors = [100 * run["result"]["top1_error"] for run in of[way]]
            found = paired_difference(errors, new)
            by_seed = ", ".join(f"{taken - of_new:+.1f}" for taken, of_new in zip(errors, new, strict=True))
            means = [f"{mean_and_std(of_way)} %" for of_way in (new, errors)]
            rate = "the whole" if "whole" in way else "a tenth"
            rows.append([images, epochs, rate, *means, found.text(), by_seed, found.verdict()])
    header = [
        "photographs", "epochs", "rate of what is taken", "from new values", "from the others' weights", "differs by",
        "by seed", "",
    ]  # fmt: skip
    before = values["before"]
    note = (
        f"Top-1 error on {values['validation_images']:,} validation photographs of these five classes, mean ± standard "
        f"deviation; differences in points, seed by seed, with 95 % intervals; seeds "
        f"{', '.join(map(str, values['seeds']))}. The weights are of {before[0]['result']['images']:,} photographs of "
        f"five other classes, where the error was {mean_and_std(100 * run['result']['top1_error'] for run in before)} "
        f"% after {before[0]['result']['epochs']:.0f} epochs; {where(before[0])}."
    )
    return f"{table(header, rows)}\n\n{note}"
