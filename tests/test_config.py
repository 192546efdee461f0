import dataclasses

import pytest

from alexnet_jax import config
from alexnet_jax.paper.architectures import ARCHITECTURES


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "--batch_size=0: must be at least 1"),
        ("epochs", 0.0, "--epochs=0.0: must be above 0"),
        ("epochs", float("nan"), "--epochs=nan: must be finite"),
        ("learning_rate", float("inf"), "--learning_rate=inf: must be finite"),
        ("momentum", 1.0, "--momentum=1.0: must be below 1"),
        ("learning_rate_drops", (2.0, -1.0), "--learning_rate_drops=2.0,-1.0: must be above 0"),
        ("seed", -1, "--seed=-1: must be at least 0"),
    ],
)
def test_impossible_values_name_the_flag(field, value, message):
    with pytest.raises(config.InputError) as caught:
        dataclasses.replace(config.Config(), **{field: value})
    assert str(caught.value) == message


def test_the_names_for_help_are_those_of_the_tables():
    assert tuple(ARCHITECTURES) == config.ARCHITECTURE_NAMES
    assert {config.network_of(preset) for preset in config.PRESETS} == {"demo", "paper", "original"}


def test_batches_by_the_rules_of_2014():
    before = config.Config(bias_learning_rate=0.02)
    linear, sqrt = (config.for_batch(before, 1024, rule) for rule in ("linear", "sqrt"))
    assert (linear.batch_size, linear.learning_rate, linear.bias_learning_rate) == (1024, 0.08, 0.16)
    assert linear.weight_decay == 0.0005
    # His own example: "for N = 128, ε = 0.01, λ = 0.0005 … N' = 1024 … ε' = √8 · 0.01 and λ' = 0.0014".
    assert sqrt.learning_rate == pytest.approx(8**0.5 * 0.01)
    assert sqrt.bias_learning_rate == pytest.approx(8**0.5 * 0.02)
    assert round(sqrt.weight_decay, 4) == 0.0014
    assert 1 - sqrt.learning_rate * sqrt.weight_decay == pytest.approx((1 - 0.01 * 0.0005) ** 8, rel=1e-12)
    assert config.for_batch(before, 128, "sqrt").weight_decay == pytest.approx(0.0005)
    with pytest.raises(config.InputError, match="--batch_size=0: must be at least 1"):
        config.for_batch(before, 0)
    with pytest.raises(config.InputError, match="--rule=cubic: must be linear or sqrt"):
        config.for_batch(before, 256, "cubic")


def test_layers_with_trust_need_a_rate_for_biases():
    with pytest.raises(config.InputError, match=r"--trust_coefficient=0\.001: needs --bias_learning_rate"):
        config.Config(trust_coefficient=0.001)
