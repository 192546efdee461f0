"""The table of every empirical claim of the paper, in its order, with what is known here; tables.py writes it."""

from collections.abc import Callable
from typing import NamedTuple

import relu_vs_tanh
from cifar_tables import dropout_takes, gains_of, lrn_difference, lrn_logs, times_faster
from intervals import Interval, difference, ratio
from photo_tables import gain, rise, specialised
from record import RESULTS, log, table

from alexnet_jax import ARCHITECTURES, ORIGINAL, PAPER, summary

TESTED, SMALL, UNTESTED = "tested", "in small", "not testable"
TRAIN = "`python -m alexnet_jax.main --dataset=imagenet --preset=paper --workdir=my_run`"
TEN_VIEWS = "`python -m alexnet_jax.main --mode=evaluate --workdir=my_run --views=10`"
IMAGENET = "needs ImageNet"


class Claim(NamedTuple):
    """section and quote: of the paper. result: a text, or what writes it from logs."""

    section: str
    quote: str
    kind: str
    where: str
    result: str | Callable[[], str]


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


def _ablation(variant: str, paper: str) -> Callable[[], str]:
    """Of both measures, beside what the paper found."""

    def result() -> str:
        top1, top5 = (rise(variant, kind) for kind in ("top1_error", "top5_error"))
        return f"top-1 {points(top1)}; top-5 {points(top5)}; {seeds('ablations')} (paper: {paper})"

    return result


def _relu() -> str:
    runs = len(log("relu_vs_tanh")["results"]["3 conv + fc10, ReLU"]["curves"])
    found = (f"{times(times_faster(network))} ({network})" for network in relu_vs_tanh.NETWORKS)
    return f"{'; '.join(found)}; n = {runs}"


def _lrn() -> str:
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


def _order() -> str:
    names = {"tanh": "§3.1", "one GPU": "§3.2", "no normalisation": "§3.3", "pooling does not overlap": "§3.4"}
    parts = [f"without {section}: {points(small(name, 'test_error'))}" for name, section in names.items()]
    return f"test error {'; '.join(parts)}; {seeds('small_claims')}"


def _overlap() -> str:
    runs = log("small_claims")["results"]

    def gaps(name: str) -> list[float]:
        return [run["result"]["test_error"] - run["result"]["training_error"] for run in runs[name]]

    found = difference(gaps("pooling does not overlap"), gaps("small"))
    return f"test minus training error without overlap {points(found)}; {seeds('small_claims')}"


def _removing() -> str:
    run = [n for n in (2, 3, 4, 5) if f"without conv{n}" in log("small_claims")["results"]]
    parts = [f"conv{n} {points(small(f'without conv{n}', 'test_error'))}" for n in run]
    others = ", ".join(f"conv{n}" for n in range(1, 6) if n not in run)
    return f"test error without {'; '.join(parts)}; {seeds('small_claims')}; not run: {others}" if run else "not run"


def _decay() -> str:
    error, loss = (small("no decay", kind) for kind in ("training_error", "training_loss"))
    text = f"without it training error {points(error)}, training loss {loss.text(form='+.3f')}"
    return f"{text}; {seeds('small_claims')}"


def _biases() -> str:
    found = small("biases of 0", "first_loss")
    text = f"with biases of 0 the training loss after 100 steps is {found.text(form='+.3f')} nats higher"
    return f"{text}, {found.verdict()}; {seeds('small_claims')}"


def _geometric() -> str:
    runs = [run["result"]["dropout"] for run in log("small_claims")["results"]["small"]]

    def mean(kind: str) -> float:
        return sum(run[kind] for run in runs) / len(runs)

    error = difference([run["halved_error"] for run in runs], [run["geometric_error"] for run in runs])
    return (
        f"same answer for {100 * mean('same_answer'):.1f} % of images; divergence "
        f"{mean('geometric_divergence'):.3f} nats (one dropout network: {mean('single_divergence'):.3f}); its error "
        f"{points(error)}; n = {len(runs)}"
    )


def _kernels() -> str:
    if not (RESULTS / "kernels_and_neighbors.json").exists():
        return "not run: `python experiments/kernels_and_neighbors.py`"
    values = log("kernels_and_neighbors")
    above = values["kernels"]["above 95 % of the random ones"]
    shares = ", ".join(f"{100 * share:.0f} % for {kind}" for kind, share in above.items())
    count = len(values["kernels"]["learned"]["orientation"])
    text = f"more selective than 95 % of random kernels: {shares}"
    return f"{text}; {count} kernels of one run of {values['epochs']:g} epochs"


def _neighbors() -> str:
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


def _dropout() -> str:
    learned, converged = dropout_takes()
    return (
        f"to 40 % training error {learned.text(form='.2f')} times the epochs, {learned.verdict()}; to converge "
        f"{converged.text(form='.2f')} times, {converged.verdict()}; {seeds('overfitting')}"
    )


def _cure(cure: str, variant: str) -> Callable[[], str]:
    def result() -> str:
        found, photographs = gains_of(cure), rise(variant)
        return (
            f"CIFAR-10, with it: test error {points(found['test error'])}, test minus training error "
            f"{points(found['gap'])}; {seeds('overfitting')}. Photographs, without it: test error "
            f"{points(photographs)}; {seeds('ablations')}"
        )

    return result


def _table2(row: str) -> Callable[[], str]:
    def result() -> str:
        top1, top5 = (gain(row, kind) for kind in ("top1_error", "top5_error"))
        return f"top-1 {points(top1)}; top-5 {points(top5)}; one training each, 1,000 images"

    return result


def _free() -> str:
    rates = log("feeding_cpu")["all"]
    parts = (
        f"{name} {ratio(of, rates['synthetic']).text(form='.2f')}" for name, of in rates.items() if name != "synthetic"
    )
    found = f"rate of training, against the same images again and again: {'; '.join(parts)}"
    return f"{found}; n = {len(rates['synthetic'])}, two cores; on a GPU not run"


def _shares() -> str:
    rows = summary(PAPER)
    total = sum(row.parameters for row in rows)
    shares = (f"{row.name} {100 * row.parameters / total:.2f} %" for row in rows if row.name.startswith("conv"))
    return f"{', '.join(shares)}: two are above 1 %"


def _columns() -> str:
    two, one = (sum(row.multiply_adds for row in summary(ARCHITECTURES[name])) for name in ("paper", "one_gpu"))
    sent = log("two_gpus_paper")["bytes_sent_per_device_and_step_at_batch_128"]["model parallel"]
    return (
        f"multiply-adds of one GPU and image: {two / 2e6:.0f} million, against {one / 1e6:.0f} million of the network "
        f"of one GPU; it also sends {sum(sent.values()) / 1e6:.1f} MB a step. Time needs two GPUs and was not measured"
    )


def _sizes() -> str:
    rows = summary(ORIGINAL)
    neurons = sum(row.neurons for row in rows)
    return f"{sum(row.parameters for row in rows):,} parameters, {neurons:,} neurons"


FIGURE_1, PHOTOGRAPHS, COUNTED = "`relu_vs_tanh.py`", "`ablations.py`", "counted"
CLAIMS = (
    Claim("Abstract, §6", "ILSVRC-2010: 37.5 % and 17.0 %", UNTESTED, TRAIN, f"{IMAGENET} (2010)"),
    Claim("Abstract, §3.5", "60 million parameters, 650,000 neurons", TESTED, "`test_paper.py`", _sizes),
    Claim("Abstract, §6", "ILSVRC-2012: top-5 15.3 %, the second 26.2 %", UNTESTED, TEN_VIEWS,
          "the labels of the test images are not public"),
    Claim("§1", "fewer connections than dense networks of the size, “only slightly worse” at best", UNTESTED, "",
          "stated without an experiment"),
    Claim("§1", "each convolution has no more than 1 % of the parameters", TESTED, COUNTED, _shares),
    Claim("§1", "removing any convolution is inferior", SMALL, "`small_claims.py`", of_small(_removing)),
    Claim("§1, §5", "five to six days on two GTX 580 of 3 GB", UNTESTED, TRAIN, f"{IMAGENET} and these GPUs"),
    Claim("§1, §7", "faster GPUs, bigger data sets and longer training improve it", UNTESTED, TRAIN, IMAGENET),
    Claim("§3", "§3.1 to §3.4 are in the order of their importance", SMALL, "`small_claims.py`", of_small(_order)),
    Claim("§3.1, Figure 1", "ReLU comes to 25 % training error six times faster than tanh", TESTED, FIGURE_1, _relu),
    Claim("§3.1", "the size varies with the network, “consistently several times faster”", TESTED, FIGURE_1,
          "both networks of the line above"),
    Claim("§3.1", "such large networks could not be tried with saturating neurons", UNTESTED, TRAIN, IMAGENET),
    Claim("§3.2", "1.2 million examples suffice for networks too big for one GPU of 3 GB", UNTESTED, TRAIN, IMAGENET),
    Claim("§3.2", "two GPUs against one with half the kernels: −1.7 % / −1.2 %", SMALL, PHOTOGRAPHS,
          _ablation("one GPU", "+1.7 / +1.2")),
    Claim("§3.2", "the two-GPU net takes slightly less time to train", SMALL, "counted; `two_gpus.py`", _columns),
    Claim("§3.3", "ReLU needs no normalisation of its input to learn", SMALL, PHOTOGRAPHS,
          lambda: f"without normalisation the training error falls to "
          f"{100 * min(run['result']['training_error'] for run in log('ablations')['results']['no normalisation']):.1f}"
          " % and below 90 %, chance, in all runs"),
    Claim("§3.3", "response normalisation: −1.4 % / −1.2 %", SMALL, PHOTOGRAPHS,
          _ablation("no normalisation", "+1.4 / +1.2")),
    Claim("§3.3", "CIFAR-10: 13 % without normalisation, 11 % with", TESTED, "`lrn_cifar10.py`", _lrn),
    Claim("§3.4", "overlapping pooling: −0.4 % / −0.3 %", SMALL, PHOTOGRAPHS,
          _ablation("pooling does not overlap", "+0.4 / +0.3")),
    Claim("§3.4", "overlapping pooling is slightly harder to overfit", SMALL, "`small_claims.py`", of_small(_overlap)),
    Claim("§3.5, Figure 2", "neurons of the layers", TESTED, "`test_paper.py`",
          "as printed but for conv1: 55·55·96 = 290,400, not 253,440"),
    Claim("§4", "so many parameters overfit considerably", SMALL, "`overfitting.py`",
          lambda: "without a cure the training error ends at "
          f"{_end('neither', 'training error')}, the test error at {_end('neither', 'test error')}; "
          f"{seeds('overfitting')}"),
    Claim("§4.1", "the transformed images are “computationally free”", SMALL, "`feeding.py`",
          _free),
    Claim("§4.1", "patches and reflections: a factor of 2,048", TESTED, "`test_augment.py`", "32 · 32 · 2"),
    Claim("§4.1", "without them substantial overfitting", SMALL, "`overfitting.py`, `ablations.py`",
          _cure("crops and reflections", "no crops")),
    Claim("§4.1, §6", "ten views against one: 39.0 / 18.3 to 37.5 / 17.0", SMALL, "`table2.py`",
          _table2("1 CNN, ten views")),
    Claim("§4.1", "colour: over 1 % of top-1", SMALL, PHOTOGRAPHS, _ablation("no colour", "over +1")),
    Claim("§4.2", "combining models lowers the error", SMALL, "`table2.py`", _table2("5 CNNs, ten views")),
    Claim("§4.2", "outputs × 0.5 approximate the geometric mean of the dropout networks", SMALL, "`small_claims.py`",
          of_small(_geometric)),
    Claim("§4.2", "dropout keeps neurons from co-adapting; they learn more robust features", UNTESTED, "",
          "a reason, not measured in the paper either"),
    Claim("§4.2", "without dropout substantial overfitting", SMALL, "`overfitting.py`, `ablations.py`",
          _cure("dropout", "no dropout")),
    Claim("§4.2", "dropout roughly doubles the iterations to converge", SMALL, "`overfitting.py`", _dropout),
    Claim("§5", "weight decay lowers the training error", SMALL, "`small_claims.py`", of_small(_decay)),
    Claim("§5", "biases of 1 speed the early stages", SMALL, "`small_claims.py`", of_small(_biases)),
    Claim("§5", "the rate falls three times, when the validation error stops improving", SMALL,
          "`test_optim.py`, `test_train.py`", "the rule alone; over a whole run not run: `python -m alexnet_jax.main "
          "--dataset=prepared --plateau_patience=5 --epochs=90 --workdir=my_run`"),
    Claim("§5", "roughly 90 cycles", UNTESTED, TRAIN, IMAGENET),
    Claim("§6, Table 1", "sparse coding 47.1 / 28.2, SIFT and Fisher vectors 45.7 / 25.7", UNTESTED, "",
          "results of others"),
    Claim("§6, Table 2", "1 CNN: 40.7 / 18.2", UNTESTED, TEN_VIEWS, IMAGENET),
    Claim("§6, Table 2", "5 CNNs: 38.1 / 16.4", SMALL, "`table2.py`",
          "the line on combining models; on ILSVRC: ImageNet"),
    Claim("§6, Table 2", "1 CNN\\* (pre-trained): 39.0 / 16.6", SMALL, "`table2.py`", _table2("1 CNN*, ten views")),
    Claim("§6, Table 2", "7 CNNs\\*: 36.7 / 15.4", SMALL, "`table2.py`, six of them", _table2("6 CNNs*, ten views")),
    Claim("§6", "errors on validation and test images differ by 0.1 % at most", UNTESTED, "",
          "the labels of the test images are not public"),
    Claim("§6", "Fall 2009, 10,184 classes: 67.4 / 40.9 (before: 78.1 / 60.9)", UNTESTED,
          "`python -m alexnet_jax.main --dataset=fall2009 --architecture=six_conv --workdir=my_run`",
          "needs the images of Fall 2009"),
    Claim("§6.1, Figure 3", "frequency- and orientation-selective kernels, coloured blobs", SMALL,
          "`kernels_and_neighbors.py`", _kernels),
    Claim("§6.1, Figure 3", "one GPU blind to colour, the other not, in every run", SMALL, "`specialisation.py`",
          lambda: f"{specialised()} Not in every run"),
    Claim("§6.1, Figure 4", "objects off centre are recognised; the top five labels are reasonable", UNTESTED,
          "`python -m alexnet_jax.predict --workdir=my_run --figure=seen.png photo.jpg`", "pictures to look at"),
    Claim("§6.1, Figure 4", "nearest by features: the same thing, not close in pixels", SMALL,
          "`kernels_and_neighbors.py`", _neighbors),
    Claim("§6.1", "codes by an auto-encoder would make retrieval fast", UNTESTED, "", "proposed, not tried"),
    Claim("§7", "removing any middle layer costs about 2 % of top-1", SMALL, "`ablations.py`; `small_claims.py`",
          lambda: f"without conv4 of the photographs' network {points(rise('without conv4'))}; {seeds('ablations')}. "
          "Others: the line of §1"),
    Claim("§7", "unsupervised pre-training would help; video has more to give", UNTESTED, "", "expected, not tried"),
)  # fmt: skip


def _end(name: str, kind: str) -> str:
    ends = [training["result"][kind][-1] for training in log("overfitting")["results"][name]]
    return f"{100 * sum(ends) / len(ends):.1f} %"


def every_claim() -> str:
    """One line for each claim."""
    rows = []
    for claim in CLAIMS:
        result = claim.result if isinstance(claim.result, str) else claim.result()
        rows.append([claim.section, claim.quote, claim.kind, claim.where, result])
    counts = {kind: sum(claim.kind == kind for claim in CLAIMS) for kind in (TESTED, SMALL, UNTESTED)}
    waiting = sum("not run: `" in row[-1] for row in rows)
    note = (
        f"{len(CLAIMS)} claims: {counts[TESTED]} tested as they are, {counts[SMALL]} in small ({waiting} of these "
        f"not run yet), {counts[UNTESTED]} not testable here. Differences with their 95 % intervals; resolved: where "
        "that leaves out 0 (of a ratio, 1)."
    )
    return f"{table(['section', 'the paper', '', 'by', 'here'], rows)}\n\n{note}"


def claims() -> str:
    """The README's few lines of it: what is tested on CIFAR-10."""
    shown = ("six times faster", "13 % without", "doubles the iterations")
    rows = [
        [claim.section.partition(",")[0], claim.quote, claim.result() if callable(claim.result) else claim.result]
        for claim in CLAIMS
        if any(part in claim.quote for part in shown)
    ]
    return table(["", "the paper", "here, with 95 % intervals"], rows)
