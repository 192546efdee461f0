"""§3: the architectures, as tables of layers."""

import functools
from collections.abc import Mapping
from types import MappingProxyType

from alexnet_jax.paper.layers import dropout, local_response_norm, lrn, max_pool, pool, relu, spatial_response_norm
from alexnet_jax.paper.table import Conv, Dense, Layers, named, with_column, with_layers, with_steps

# §3.5, Figure 2. 224 is read with three rows and columns of zeros at the bottom and right: 55 × 55, as in 2012.
PAPER: Layers = (
    Conv(96, 11, stride=4, padding=(0, 3), then=(relu, lrn, pool)),
    Conv(256, 5, padding=2, groups=2, bias=1.0, then=(relu, lrn, pool)),
    Conv(384, 3, padding=1, then=(relu,)),
    Conv(384, 3, padding=1, groups=2, bias=1.0, then=(relu,)),
    Conv(256, 3, padding=1, groups=2, bias=1.0, then=(relu, pool)),
    Dense(4096, bias=1.0, then=(relu, dropout)),
    Dense(4096, bias=1.0, then=(relu, dropout)),
    Dense(1000),
)


# What the code of 2012 ran for the paper's results (its net 145). Its α is divided by n. Normalisation comes before the
# ReLU of layer 1, and spatial normalisation after that of layer 2; the weights of layers 3 to 5 start larger.
lrn_2012 = functools.partial(lrn, alpha=1e-4 / 5)
srn_2012 = functools.partial(spatial_response_norm, size=5, alpha=1e-3 / 5**2, beta=0.75)
ORIGINAL = with_layers(
    PAPER,
    conv1={"then": (lrn_2012, pool, relu)},
    conv2={"then": (relu, lrn_2012, srn_2012, pool)},
    conv3={"std": 0.03},
    conv4={"std": 0.03},
    conv5={"std": 0.03, "then": (pool, relu)},
)


def one_column(layers: Layers) -> Layers:
    """The table as one GPU would hold it: no groups, neither of kernels nor in the normalisation."""
    steps = {step for layer in layers for step in layer.then}
    norms = {step: step.replaced(groups=1) for step in steps if "groups" in dict(step.keywords)}
    convolutions = [name for name, layer in named(layers).items() if isinstance(layer, Conv)]
    return with_layers(with_steps(layers, norms), **{name: {"groups": 1} for name in convolutions})


def one_gpu(layers: Layers) -> Layers:
    """§3.2's network of one GPU (net 145-half): half the kernels, except in conv5 and the dense layers."""
    halves = {name: {"features": named(layers)[name].features // 2} for name in ("conv1", "conv2", "conv3", "conv4")}
    return with_layers(one_column(layers), **halves)


def no_normalization(layers: Layers) -> Layers:
    """§3.3's network without response normalisation (net 148; there the spatial one went as well)."""
    steps = {step for layer in layers for step in layer.then}
    norms = (local_response_norm, spatial_response_norm)
    return with_steps(layers, {step: None for step in steps if step.function in norms})


def non_overlapping_pooling(layers: Layers) -> Layers:
    """§3.4's network with pooling over 2 × 2 (net 147).

    conv2 and conv5 are padded by one less, so that the inputs of the other layers keep their size.
    """
    layers = with_steps(layers, {pool: functools.partial(max_pool, window=2, stride=2, ceil_mode=True)})
    return with_layers(layers, conv2={"padding": 1}, conv5={"padding": 0})


def six_conv(layers: Layers) -> Layers:
    """§6's network with a sixth convolution over the last pooling (net 146), for pre-training."""
    last = layers[4]
    sixth = Conv(last.features, 3, padding=1, std=last.std, bias=last.bias, then=(relu,))
    return (*layers[:5], sixth, *layers[5:])


# BVLC AlexNet, as Caffe publishes it: images of 227 (the others: 224), normalisation across both GPUs' halves, k = 1,
# α divided by n.
inverted_dropout = functools.partial(dropout, inverted=True)
CAFFE_IMAGE_SIZE = 227
CAFFE = with_column(
    with_layers(
        with_steps(
            PAPER,
            {lrn: functools.partial(lrn, k=1.0, alpha=1e-4 / 5, groups=1), dropout: inverted_dropout},
        ),
        conv1={"padding": 0},
    ),
    std=(0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01),
    bias=(0.0, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0),
)


def pooling_first(layers: Layers) -> Layers:
    """The table with pooling before normalisation: of Caffe's, that is CaffeNet (bvlc_reference_caffenet)."""
    thens = [tuple(sorted(of.then, key=lambda step: step.function is local_response_norm)) for of in layers]
    return with_column(layers, then=thens)


# torchvision's `alexnet`, after Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks".
# The deviations are those of PyTorch's initialisation, 1 / √(3 · inputs of a neuron); there the weights are uniform,
# and the biases drawn as well.
TORCHVISION: Layers = with_column(
    (
        Conv(64, 11, stride=4, padding=2, then=(relu, pool)),
        Conv(192, 5, padding=2, then=(relu, pool)),
        Conv(384, 3, padding=1, then=(relu,)),
        Conv(256, 3, padding=1, then=(relu,)),
        Conv(256, 3, padding=1, then=(relu, pool, inverted_dropout)),
        Dense(4096, then=(relu, inverted_dropout)),
        Dense(4096, then=(relu,)),
        Dense(1000),
    ),
    std=[(3 * inputs) ** -0.5 for inputs in (363, 1600, 1728, 3456, 2304, 9216, 4096, 4096)],
)

# Minutes on a CPU. Widths and deviations were chosen by measurement: a first layer of 32 takes a step a quarter less
# time than one of 48, and errs less on the built-in data set; deviations near 0.01 everywhere, as in the paper,
# leave the narrower layers' outputs too small for learning to start within minutes.
DEMO = with_column(
    PAPER,
    features=(32, 64, 96, 96, 64, 1024, 1024, 10),
    std=(0.01, 0.025, 0.06, 0.06, 0.06, 0.02, 0.02, 0.02),
    bias=(0.0,) * 8,
)

# By the names of config.ARCHITECTURE_NAMES. Sources and recorded results of each: docs/which_alexnet.md.
ARCHITECTURES: Mapping[str, Layers] = MappingProxyType(
    {
        "paper": PAPER,
        "original": ORIGINAL,
        "one_gpu": one_gpu(PAPER),
        "no_normalization": no_normalization(PAPER),
        "non_overlapping_pooling": non_overlapping_pooling(PAPER),
        "six_conv": six_conv(PAPER),
        "caffe": CAFFE,
        "torchvision": TORCHVISION,
        "demo": DEMO,
    }
)
