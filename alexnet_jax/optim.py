"""§5: the update rule and the learning-rate schedule, in optax."""

from collections.abc import Sequence

import optax


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
    """The paper's update rule, §5: v ← m·v - d·ε·w - ε·∂L/∂w; w ← w + v.

    The learning rate ε stands *inside* the velocity v. Where it drops, the old velocity keeps the old rate; in
    `optax.sgd` (and PyTorch) the whole velocity is multiplied by the new one. Decay falls on every parameter,
    biases included: the paper makes no exception.

    Args:
      learning_rate: ε, a number or a function of the step.
      momentum: m. weight_decay: d.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(decay=momentum),
    )


def step_schedule(learning_rate: float, drops: Sequence[int]) -> optax.Schedule:
    """`learning_rate`, divided by 10 at each of the steps in `drops` (§5 drops three times, by hand)."""
    rates = [optax.constant_schedule(learning_rate * 0.1**number) for number in range(len(drops) + 1)]
    return optax.join_schedules(rates, sorted(drops))
