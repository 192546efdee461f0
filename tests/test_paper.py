"""The numbers that the paper states, or that follow from it (each with its section)."""

import numpy as np

from alexnet_jax import model
from alexnet_jax.config import PRESETS

ROWS = {row.name: row for row in model.summary(model.PAPER)}


def test_parameters():  # §1, §3.5: "60 million"
    assert sum(row.parameters for row in ROWS.values()) == 60_965_224


def test_the_first_layer_is_padded_at_the_bottom_and_right():  # 55 × 55 out of 224, as in 2012
    assert model.PAPER[0].padding == (0, 3)


def test_neurons():  # §3.5, Figure 2: "650,000"; the figure's 253,440 for conv1 should be 55·55·96
    assert [row.neurons for row in ROWS.values()] == [55 * 55 * 96, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert sum(row.neurons for row in ROWS.values()) == 659_272


def test_multiply_adds():
    assert round(sum(row.multiply_adds for row in ROWS.values()) / 1e5) == 7244  # 724.4 M


def test_output_shapes():  # §3.5
    assert [row.output_shape for row in ROWS.values()] == [
        (27, 27, 96),
        (13, 13, 256),
        (13, 13, 384),
        (13, 13, 384),
        (6, 6, 256),
        (4096,),
        (4096,),
        (1000,),
    ]


def test_most_parameters_are_in_the_dense_layers():
    assert sum(ROWS[name].parameters for name in ("fc6", "fc7", "fc8")) == 58_631_144


def test_initial_values():  # §5
    assert [layer.std for layer in model.PAPER] == [0.01] * 8
    assert [layer.bias for layer in model.PAPER] == [0, 1, 0, 1, 1, 1, 1, 0]


def test_training_settings():  # §4.1, §5
    paper = PRESETS["paper"]
    assert (paper.batch_size, paper.learning_rate, paper.momentum, paper.weight_decay) == (128, 0.01, 0.9, 0.0005)
    assert (paper.epochs, paper.learning_rate_drops) == (90, (25, 51, 79))  # when: of the 2012 code's log
    assert (paper.crop_size, paper.color_scale) == (224, 0.1)


def test_demo_is_the_paper_at_a_fraction_of_the_width():
    for demo, paper in zip(model.DEMO, model.PAPER, strict=True):
        assert demo.features < paper.features
        kept = [name for name in vars(paper) if name not in ("features", "std", "bias")]
        assert [getattr(demo, name) for name in kept] == [getattr(paper, name) for name in kept]
    assert np.prod(ROWS["conv5"].output_shape) == 9216  # what fc6 reads
