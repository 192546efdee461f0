"""§5: the update rule and the learning-rate schedules, in optax."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from alexnet_jax.config import Config
from alexnet_jax.options import LARGEST


def papers_rule(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9, weight_decay: float = 5e-4, *, patience: int = 0
) -> optax.GradientTransformation:
    """The paper's update rule, §5: v ← m·v - d·ε·w - ε·∂L/∂w; w ← w + v.

    The learning rate ε stands *inside* the velocity v. Where it drops, the old velocity keeps the old rate; in
    `optax.sgd` (and PyTorch) the whole velocity is multiplied by the new one.

    Args:
      learning_rate: ε, a number or a function of the step. Where it is 0 nothing moves, whatever its velocity: this is
        how the code of 2012 froze layers.
      momentum: m.
      weight_decay: d.
      patience: of `with_plateau`, which then multiplies ε inside the velocity; 0: off.
    """
    return _with_velocity([optax.add_decayed_weights(weight_decay)], learning_rate, momentum, patience)


def lars_rule(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    *,
    trust_coefficient: float = 0.001,
    patience: int = 0,
) -> optax.GradientTransformation:
    """For large batches: `papers_rule` with ε·η·‖w‖ / ‖∂L/∂w + d·w‖ in the place of ε, for each parameter alone.

    You, Gitman, Ginsburg 2017, "Large Batch Training of Convolutional Networks" (LARS), arXiv:1708.03888, algorithm 1,
    as optax has it. The authors divide by ‖∂L/∂w‖ + d·‖w‖, which is never less. Where w or its gradient is all zero the
    rate is ε: so this is no rule for biases, which begin there.

    Args:
      learning_rate, momentum, weight_decay, patience: as in `papers_rule`.
      trust_coefficient: η; of how much of its norm a parameter moves in a step, by ε.
    """
    direction = [
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient),
    ]
    return _with_velocity(direction, learning_rate, momentum, patience)


def _with_velocity(
    direction: Sequence[optax.GradientTransformation],
    learning_rate: optax.ScalarOrSchedule,
    momentum: float,
    patience: int,
) -> optax.GradientTransformation:
    """v ← m·v - ε·direction; w ← w + v, and no move where ε is 0."""
    schedule = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
    move = optax.chain(*direction, optax.scale_by_learning_rate(schedule))
    return optax.chain(
        with_plateau(move, patience) if patience else move,
        optax.trace(decay=momentum),
        optax.scale_by_schedule(lambda step: jnp.where(schedule(step) == 0, 0.0, 1.0)),
    )


def by_parameter(rules: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformationExtraArgs:
    """Other rules for other parameters: that under "conv1/kernel" for this one, under "kernel" or "bias" for all others
    of the kind.
    """

    def label(path: Sequence[Any], _: Any) -> str:
        keys = [key.key for key in path]
        return "/".join(keys) if "/".join(keys) in rules else keys[-1]

    return optax.partition(dict(rules), lambda params: jax.tree_util.tree_map_with_path(label, params))


class PlateauState(NamedTuple):
    """Of `with_plateau`. scale: what multiplies the updates; lowest: error so far; since: evaluations since that."""

    inner: PyTree
    scale: PyTree
    lowest: PyTree
    since: PyTree
    patience: PyTree


def with_plateau(rule: optax.GradientTransformation, patience: int = 5) -> optax.GradientTransformationExtraArgs:
    """Any rule, its updates divided by 10 when the validation error has stopped improving, three times at most (§5).

    Stopped means: `patience` evaluations in a row, none with an error lower than all before (see `plateau_after`). In
    the paper's own rule the rate stands inside the velocity: `papers_rule(…, patience=5)`.
    """
    inner = optax.with_extra_args_support(rule)

    def init(params: PyTree) -> PlateauState:
        # 2 is above every error.
        return PlateauState(inner.init(params), jnp.float32(1), jnp.float32(2), jnp.int32(0), jnp.int32(patience))

    def update(
        updates: PyTree, state: PlateauState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PlateauState]:
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        scaled = jax.tree.map(lambda update: state.scale.astype(update.dtype) * update, updates)
        return scaled, state._replace(inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def plateaus(opt_state: PyTree) -> list[PlateauState]:
    """The states of `with_plateau` in that of an optimizer."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda of: isinstance(of, PlateauState))
    return [of for of in leaves if isinstance(of, PlateauState)]


def plateau_after(opt_state: PyTree, error: float) -> PyTree:
    """The optimizer's state after an evaluation: each `with_plateau` in it has seen this error.

    §5: "divide the learning rate by 10 when the validation error rate stopped improving"; three times at most.
    """

    def seen(of: Any) -> Any:
        if not isinstance(of, PlateauState):
            return of
        lowest = jnp.minimum(jnp.float32(error), of.lowest)
        since = jnp.where(lowest < of.lowest, 0, of.since + 1)
        dropping = since == of.patience
        scale = jnp.where(dropping, jnp.maximum(of.scale / 10, jnp.float32(0.001)), of.scale)
        return of._replace(scale=scale, lowest=lowest, since=jnp.where(dropping, 0, since))

    return jax.tree.map(seen, opt_state, is_leaf=lambda of: isinstance(of, PlateauState))


def step_schedule(
    learning_rate: float, drops: Sequence[int], freeze: int | None = None, divisor: float = 10.0
) -> optax.Schedule:
    """`learning_rate`, divided by `divisor` at each of the steps in `drops`, and 0 from the step `freeze` on."""
    rates, steps = [learning_rate / divisor**number for number in range(len(drops) + 1)], sorted(drops)
    if freeze is not None:  # may come before a drop: in `join_schedules` the last boundary passed decides
        rates, steps = [*rates, 0.0], [*steps, freeze]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], steps)


def warmed_up(schedule: optax.Schedule, steps: float) -> optax.Schedule:
    """A schedule that rises from 0 to itself over its first steps, as a straight line."""
    return (lambda step: schedule(step) * jnp.minimum(1.0, (step + 1) / steps)) if steps else schedule


def learning_rates(config: Config, steps_per_epoch: float, taken: Sequence[str] = ()) -> dict[str, optax.Schedule]:
    """The schedules of a run, by parameter as in `by_parameter`.

    taken: names of the parameters that come from another network. Their weights learn more slowly; their biases do as
    all biases do (in 2012 only the weights' rates were lowered); those of frozen layers, and all at a scale of 0, stay.
    """

    def schedule(rate: float, drops: Sequence[float], frozen_from: float = 0) -> optax.Schedule:
        steps = [min(round(epoch * steps_per_epoch), LARGEST) for epoch in drops]  # the last that there can be
        freeze = min(round(frozen_from * steps_per_epoch), LARGEST) if frozen_from else None
        return warmed_up(step_schedule(rate, steps, freeze, config.learning_rate_divisor), warmup)

    warmup = min(config.warmup_epochs * steps_per_epoch, LARGEST)
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
        return of if kind == "bias" and scale else lambda step: scale * of(step)

    return {**rates, **{name: scaled(name) for name in taken}}


def configured_rule(
    config: Config, steps_per_epoch: float, taken: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """`papers_rule` for each parameter, with the rates and decays of the config; with a trust coefficient, `lars_rule`
    for all but the biases. taken: as in `learning_rates`.
    """
    rates = learning_rates(config, steps_per_epoch, taken)

    def rule(name: str) -> optax.GradientTransformation:
        is_bias = name.rpartition("/")[2] == "bias"
        decay = config.weight_decay if config.decay_biases or not is_bias else 0.0
        of = papers_rule
        if config.trust_coefficient and not is_bias:
            of = functools.partial(lars_rule, trust_coefficient=config.trust_coefficient)
        return of(rates[name], config.momentum, decay, patience=config.plateau_patience)

    return by_parameter({name: rule(name) for name in rates})
