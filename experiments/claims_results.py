"""What the logs in results/ say of single claims of the paper, in a few words each; claims_tables.py has the claims."""

from collections.abc import Callable

import relu_vs_tanh
from cifar_tables import dropout_takes, gains_of, lrn_difference, lrn_logs, times_faster
from intervals import Interval, difference, ratio
from photo_tables import gain, rise
from record import RESULTS, log

from alexnet_jax import ARCHITECTURES, ORIGINAL, PAPER, summary


def points(of: Interval, form: str = "+.1f") -> str:
    """A difference of errors, with its interval."""
    return f"{of.text(100, form)} points, {of.verdict()}"


def times(of: Interval | None) -> str:
    return f"{of.text(form='.1f')} times" if of else "not reached by every run"


def of_small(write: Callable[[], str]) -> Callable[[], str]:
    """What is written from small_claims.json, where what it needs is there."""

    def result() -> str:
        try:
            return write()
        except (FileNotFoundError, KeyError):  # no log, or one without this variant
            return "not run: `python experiments/small_claims.py`"

    return result


def small(variant: str, kind: str) -> Interval:
    return rise(variant, kind, of="small_claims", base="small")


def seeds(name: str) -> str:
    values = log(name)
    return f"n = {len(values.get('seeds') or next(iter(values['results'].values())))}"


def ablation(variant: str, paper: str) -> Callable[[], str]:
    """Of both measures, beside what the paper found."""

    def result() -> str:
        top1, top5 = (rise(variant, kind) for kind in ("top1_error", "top5_error"))
        return f"top-1 {points(top1)}; top-5 {points(top5)}; {seeds('ablations')} (paper: {paper})"

    return result


def relu_times() -> str:
    runs = len(log("relu_vs_tanh")["results"]["3 conv + fc10, ReLU"]["curves"])
    found = (f"{times(times_faster(network))} ({network})" for network in relu_vs_tanh.NETWORKS)
    return f"{'; '.join(found)}; n = {runs}"


def lrn_on_cifar10() -> str:
    parts = []
    for values in lrn_logs():
        for network in ("with normalisation alone", "11 % network"):
            found = lrn_difference(values, network)
            if found:
                n = len(values["results"][network])
                parts.append(f"{network}, {values['epochs']:g} epochs: {points(found, '+.2f')}, n = {n}")
            else:
                errors = [
                    values["results"][of][0]["result"]["ten_views_top1_error"] for of in ("13 % network", network)
                ]
                parts.append(
                    f"{network}, {values['epochs']:g} epochs: {100 * (errors[1] - errors[0]):+.2f} points, one seed"
                )
    return "; ".join(parts)


@of_small
def order_of_importance() -> str:
    names = {"tanh": "§3.1", "one GPU": "§3.2", "no normalisation": "§3.3", "pooling does not overlap": "§3.4"}
    parts = [f"without {section}: {points(small(name, 'test_error'))}" for name, section in names.items()]
    return f"test error {'; '.join(parts)}; {seeds('small_claims')}"


@of_small
def overlap_overfits() -> str:
    runs = log("small_claims")["results"]

    def gaps(name: str) -> list[float]:
        return [run["result"]["test_error"] - run["result"]["training_error"] for run in runs[name]]

    found = difference(gaps("pooling does not overlap"), gaps("small"))
    return f"test minus training error without overlap {points(found)}; {seeds('small_claims')}"


@of_small
def removing_convolutions() -> str:
    run = [n for n in (2, 3, 4, 5) if f"without conv{n}" in log("small_claims")["results"]]
    parts = [f"conv{n} {points(small(f'without conv{n}', 'test_error'))}" for n in run]
    others = ", ".join(f"conv{n}" for n in range(1, 6) if n not in run)
    return f"test error without {'; '.join(parts)}; {seeds('small_claims')}; not run: {others}" if run else "not run"


@of_small
def weight_decay() -> str:
    error, loss = (small("no decay", kind) for kind in ("training_error", "training_loss"))
    text = f"without it training error {points(error)}, training loss {loss.text(form='+.3f')}"
    return f"{text}; {seeds('small_claims')}"


@of_small
def biases_of_one() -> str:
    found = small("biases of 0", "first_loss")
    text = f"with biases of 0 the training loss after 100 steps is {found.text(form='+.3f')} nats higher"
    return f"{text}, {found.verdict()}; {seeds('small_claims')}"


@of_small
def geometric_mean() -> str:
    runs = [run["result"]["dropout"] for run in log("small_claims")["results"]["small"]]

    def mean(kind: str) -> float:
        return sum(run[kind] for run in runs) / len(runs)

    error = difference([run["halved_error"] for run in runs], [run["geometric_error"] for run in runs])
    return (
        f"same answer for {100 * mean('same_answer'):.1f} % of images; divergence "
        f"{mean('geometric_divergence'):.3f} nats (one dropout network: {mean('single_divergence'):.3f}); its error "
        f"{points(error)}; n = {len(runs)}"
    )


def kernels() -> str:
    if not (RESULTS / "kernels_and_neighbors.json").exists():
        return "not run: `python experiments/kernels_and_neighbors.py`"
    values = log("kernels_and_neighbors")
    above = values["kernels"]["above 95 % of the random ones"]
    shares = ", ".join(f"{100 * share:.0f} % for {kind}" for kind, share in above.items())
    count = len(values["kernels"]["learned"]["orientation"])
    text = f"more selective than 95 % of random kernels: {shares}"
    return f"{text}; {count} kernels of one run of {values['epochs']:g} epochs"


def neighbors() -> str:
    if not (RESULTS / "kernels_and_neighbors.json").exists():
        return "not run: `python experiments/kernels_and_neighbors.py`"
    values = log("kernels_and_neighbors")
    of = {name: Interval(*found) for name, found in values["neighbors"].items()}
    shares = [100 * of[f"same class, by {what}"].value for what in ("features", "pixels")]
    place = of["place by pixels of the nearest by features"]
    return (
        f"of the nearest by features {shares[0]:.1f} % have the class, by pixels {shares[1]:.1f} %: "
        f"{points(of['features minus pixels'])}; by pixels {place.text(100, '.1f')} % of all are nearer than the "
        f"nearest by features; n = {values['images']} images, one run"
    )


def dropout_iterations() -> str:
    learned, converged = dropout_takes()
    return (
        f"to 40 % training error {learned.text(form='.2f')} times the epochs, {learned.verdict()}; to converge "
        f"{converged.text(form='.2f')} times, {converged.verdict()}; {seeds('overfitting')}"
    )


def cure(cure: str, variant: str) -> Callable[[], str]:
    def result() -> str:
        found, photographs = gains_of(cure), rise(variant)
        return (
            f"CIFAR-10, with it: test error {points(found['test error'])}, test minus training error "
            f"{points(found['gap'])}; {seeds('overfitting')}. Photographs, without it: test error "
            f"{points(photographs)}; {seeds('ablations')}"
        )

    return result


def table2_gain(row: str) -> Callable[[], str]:
    def result() -> str:
        top1, top5 = (gain(row, kind) for kind in ("top1_error", "top5_error"))
        return f"top-1 {points(top1)}; top-5 {points(top5)}; one training each, 1,000 images"

    return result


def free_transformations() -> str:
    rates = log("feeding_cpu")["all"]
    parts = (
        f"{name} {ratio(of, rates['synthetic']).text(form='.2f')}" for name, of in rates.items() if name != "synthetic"
    )
    found = f"rate of training, against the same images again and again: {'; '.join(parts)}"
    return f"{found}; n = {len(rates['synthetic'])}, two cores; on a GPU not run"


def shares_of_parameters() -> str:
    rows = summary(PAPER)
    total = sum(row.parameters for row in rows)
    shares = (f"{row.name} {100 * row.parameters / total:.2f} %" for row in rows if row.name.startswith("conv"))
    return f"{', '.join(shares)}: two are above 1 %"


def two_columns() -> str:
    two, one = (sum(row.multiply_adds for row in summary(ARCHITECTURES[name])) for name in ("paper", "one_gpu"))
    sent = log("two_gpus_paper")["bytes_sent_per_device_and_step_at_batch_128"]["model parallel"]
    return (
        f"multiply-adds of one GPU and image: {two / 2e6:.0f} million, against {one / 1e6:.0f} million of the network "
        f"of one GPU; it also sends {sum(sent.values()) / 1e6:.1f} MB a step. Time needs two GPUs and was not measured"
    )


def sizes() -> str:
    rows = summary(ORIGINAL)
    neurons = sum(row.neurons for row in rows)
    return f"{sum(row.parameters for row in rows):,} parameters, {neurons:,} neurons"


def error_at_the_end(name: str, kind: str) -> str:
    ends = [training["result"][kind][-1] for training in log("overfitting")["results"][name]]
    return f"{100 * sum(ends) / len(ends):.1f} %"
