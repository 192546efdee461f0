"""The public names: `__init__.py` loads each when it is first used."""

from .config import PRESETS as PRESETS, Config as Config, for_batch as for_batch
from .data.datasets import Dataset as Dataset, open_dataset as open_dataset
from .data.input_pipeline import batch_of as batch_of, training_batches as training_batches
from .device.tuned import tuned as tuned
from .device.xla import compiler_options as compiler_options
from .networks.explain import (
    activation_maximization as activation_maximization,
    gradcam as gradcam,
    occlusion as occlusion,
    saliency as saliency,
)
from .networks.layer_outputs import features_of_split as features_of_split
from .networks.loading import load as load
from .networks.network import Trained as Trained
from .networks.onnx import to_onnx as to_onnx
from .networks.pretrained import pretrained as pretrained
from .options import InputError as InputError
from .paper.architectures import (
    ARCHITECTURES as ARCHITECTURES,
    CAFFE as CAFFE,
    DEMO as DEMO,
    ORIGINAL as ORIGINAL,
    PAPER as PAPER,
    TORCHVISION as TORCHVISION,
)
from .paper.augment import (
    center_view as center_view,
    image_keys as image_keys,
    pca_color as pca_color,
    random_crop as random_crop,
    random_reflection as random_reflection,
    split_each as split_each,
    subtract_mean as subtract_mean,
    ten_views as ten_views,
)
from .paper.evaluate import Errors as Errors
from .paper.layers import (
    STEPS as STEPS,
    average_pool as average_pool,
    conv2d as conv2d,
    dense as dense,
    dropout as dropout,
    local_response_norm as local_response_norm,
    locally_connected as locally_connected,
    lrn as lrn,
    max_pool as max_pool,
    pool as pool,
    relu as relu,
    spatial_response_norm as spatial_response_norm,
    takes_key as takes_key,
)
from .paper.model import AlexNet as AlexNet, outputs as outputs, summary as summary
from .paper.optim import (
    by_parameter as by_parameter,
    lars_rule as lars_rule,
    papers_rule as papers_rule,
    plateau_after as plateau_after,
    step_schedule as step_schedule,
    with_plateau as with_plateau,
)
from .paper.table import (
    Conv as Conv,
    Dense as Dense,
    Local as Local,
    with_classes as with_classes,
    with_column as with_column,
    with_layers as with_layers,
    with_steps as with_steps,
)
from .paper.train_state import TrainState as TrainState, init_state as init_state
from .paper.train_step import (
    Draws as Draws,
    Seen as Seen,
    make_train_step as make_train_step,
    papers_augmentation as papers_augmentation,
)
from .paper.written import from_json as from_json, to_json as to_json
from .train import fit as fit
from .train_setup import Metrics as Metrics

__version__: str
