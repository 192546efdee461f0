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
    assert set(config.PRESETS) <= set(ARCHITECTURES)  # without --architecture, the preset's name is that of the network
