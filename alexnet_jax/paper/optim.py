"""§5: the update rule and the learning-rate schedules, in optax."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from alexnet_jax.config import Config


def sgd(
    learning_rate: optax.ScalarOrSchedule | Mapping[str, optax.ScalarOrSchedule],
    *,
    momentum: float = 0.9,
    weight_decay: float | Mapping[str, float] = 5e-4,
    decay_biases: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The paper's update rule, §5: v ← m·v - d·ε·w - ε·∂L/∂w; w ← w + v.

    The learning rate ε stands *inside* the velocity v. Where it drops, the old velocity keeps the old rate; in
    `optax.sgd` (and PyTorch) the whole velocity is multiplied by the new one.

    `update(…, rate_scale=s)` multiplies every ε by s in that step (see `plateau_next`).

    Args:
      learning_rate: ε, a number or a function of the step; or several, by parameter: under "conv1/kernel" for that
        one, under "kernel" or "bias" for all others of the kind. Where ε is 0 nothing moves, whatever its velocity:
        this is how the code of 2012 froze layers.
      momentum: m.
      weight_decay: d, or several, by parameter in the same way.
      decay_biases: whether biases decay too. The paper makes no exception; in the code of 2012 they do not.
    """
    names_of_decays = weight_decay if isinstance(weight_decay, Mapping) else ("kernel", "bias")
    rates = learning_rate if isinstance(learning_rate, Mapping) else dict.fromkeys(names_of_decays, learning_rate)
    decays = weight_decay if isinstance(weight_decay, Mapping) else dict.fromkeys(rates, weight_decay)
    own = {*rates, *decays}

    def rule(name: str) -> optax.GradientTransformationExtraArgs:
        kind = name.rpartition("/")[2]
        rate, decay = (of[name] if name in of else of[kind] for of in (rates, decays))
        schedule = rate if callable(rate) else optax.constant_schedule(rate)
        return optax.chain(
            optax.add_decayed_weights(decay if decay_biases or kind != "bias" else 0.0),
            optax.scale_by_learning_rate(schedule),
            _scale_by_argument(),
            optax.trace(decay=momentum),
            optax.scale_by_schedule(lambda step: jnp.where(schedule(step) == 0, 0.0, 1.0)),
        )

    def names(params: PyTree) -> PyTree:
        def name(path: Sequence[Any], _: Any) -> str:
            keys = [key.key for key in path]
            return "/".join(keys) if "/".join(keys) in own else keys[-1]

        return jax.tree_util.tree_map_with_path(name, params)

    return optax.partition({name: rule(name) for name in sorted(own)}, names)


def _scale_by_argument() -> optax.GradientTransformationExtraArgs:
    def update(updates: PyTree, state: Any, params: Any = None, *, rate_scale: Any = 1.0, **_: Any) -> tuple:
        return jax.tree.map(lambda update: rate_scale * update, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def step_schedule(learning_rate: float, drops: Sequence[int], freeze: int | None = None) -> optax.Schedule:
    """`learning_rate`, divided by 10 at each of the steps in `drops`, and 0 from the step `freeze` on."""
    rates, steps = [learning_rate * 0.1**number for number in range(len(drops) + 1)], sorted(drops)
    if freeze is not None:  # may come before a drop: in `join_schedules` the last boundary passed decides
        rates, steps = [*rates, 0.0], [*steps, freeze]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], steps)


def learning_rates(config: Config, steps_per_epoch: float, taken: Sequence[str] = ()) -> dict[str, optax.Schedule]:
    """The schedules of a run, by parameter as `sgd` takes them.

    taken: names of the parameters that come from another network, and learn more slowly or not at all.
    """

    def schedule(rate: float, drops: Sequence[float], frozen_from: float = 0) -> optax.Schedule:
        steps = [round(epoch * steps_per_epoch) for epoch in drops]
        return step_schedule(rate, steps, round(frozen_from * steps_per_epoch) if frozen_from else None)

    rate, drops = config.learning_rate, config.learning_rate_drops
    bias_rate, bias_drops = rate, drops
    if config.bias_learning_rate:
        bias_rate, bias_drops = config.bias_learning_rate, config.bias_learning_rate_drops
    rates = {
        "kernel": schedule(rate, drops),
        "bias": schedule(bias_rate, bias_drops),
        "conv1/kernel": schedule(rate, config.conv1_learning_rate_drops or drops, config.conv1_frozen_from),
        "conv1/bias": schedule(bias_rate, bias_drops, config.conv1_frozen_from),
    }

    def scaled(name: str) -> optax.Schedule:
        layer, _, kind = name.rpartition("/")
        of, scale = rates.get(name, rates[kind]), 0.0 if layer in config.frozen_layers else config.taken_rate_scale
        return lambda step: scale * of(step)

    return {**rates, **{name: scaled(name) for name in taken}}


def of_config(
    config: Config,
    steps_per_epoch: float,
    *,
    taken: Sequence[str] = (),
    weight_decay: Mapping[str, float] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`sgd` as the config has it. taken: as in `learning_rates`. weight_decay: not the config's, by parameter."""
    return sgd(
        learning_rates(config, steps_per_epoch, taken),
        momentum=config.momentum,
        weight_decay=config.weight_decay if weight_decay is None else weight_decay,
        decay_biases=config.decay_biases,
    )


class Plateau(NamedTuple):
    """Of the plateau rule: what multiplies the learning rates; the lowest error; how many evaluations since that."""

    scale: np.float32
    lowest: np.float32
    since: np.int32


def plateau_start() -> Plateau:
    """Before the first evaluation."""
    return Plateau(np.float32(1), np.float32(2), np.int32(0))  # 2: above every error


def plateau_next(state: Plateau, error: float, *, patience: int) -> Plateau:
    """§5: "divide the learning rate by 10 when the validation error rate stopped improving"; three times at most.

    Stopped means: `patience` evaluations in a row, none with an error lower than all before. 0: it never does.

    Args:
      error: of the evaluation just done.
    """
    scale, lowest = state.scale, np.minimum(np.float32(error), state.lowest)
    since = 0 if lowest < state.lowest else int(state.since) + 1
    if since == patience > 0:
        scale, since = np.maximum(scale / np.float32(10), np.float32(0.001)), 0
    return Plateau(scale, lowest, np.int32(since))
