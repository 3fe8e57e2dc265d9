"""Neural networks whose backward pass is a plain function.

Start with fnn.layer, which states the contract.
"""

from fnn.activations import (
    ELU,
    GELU,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from fnn.checkpoint import load, read_note, save
from fnn.combinators import Identity, Parallel, Residual, Sequential
from fnn.convolution import AvgPool2d, Conv2d, Flatten, MaxPool2d
from fnn.datasets import idx_shape as idx_shape  # not public
from fnn.datasets import load_idx, sample_disk
from fnn.debugging import find_nonfinite, observe
from fnn.dropout import Dropout
from fnn.files import remove_unfinished, replace_file
from fnn.initializers import (
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    orthogonal,
    standard_normal,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from fnn.inspection import count_params, summary
from fnn.layer import Layer
from fnn.linear import Embedding, Linear, linear_squared_norms
from fnn.losses import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    L1Loss,
    Loss,
    MSELoss,
)
from fnn.metrics import accuracy
from fnn.normalization import LayerNorm, RMSNorm
from fnn.optimizers import (
    Optimizer,
    adam,
    clip_by_global_norm,
    constant,
    cosine_decay,
    exponential_decay,
    piecewise_constant,
    sgd,
)
from fnn.sharding import data_parallel_mesh, replicate, shard_batch
from fnn.testing import check_layer, check_loss
from fnn.training import (
    TrainState,
    accumulate_gradients,
    init_train_state,
    loss_and_grads,
    make_train_epoch,
    make_train_step,
    predict,
)
from fnn.transforms import (
    as_jax_function,
    clip_gradient,
    freeze,
    per_example,
    remat,
    repeat,
    scale_gradient,
    with_compute_dtype,
)

__all__ = [
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "ELU",
    "Embedding",
    "Flatten",
    "GELU",
    "HuberLoss",
    "Identity",
    "L1Loss",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Loss",
    "MSELoss",
    "MaxPool2d",
    "Optimizer",
    "Parallel",
    "RMSNorm",
    "ReLU",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "TrainState",
    "accumulate_gradients",
    "accuracy",
    "adam",
    "as_jax_function",
    "check_layer",
    "check_loss",
    "clip_by_global_norm",
    "clip_gradient",
    "constant",
    "cosine_decay",
    "count_params",
    "data_parallel_mesh",
    "exponential_decay",
    "find_nonfinite",
    "freeze",
    "init_train_state",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "linear_squared_norms",
    "load",
    "load_idx",
    "loss_and_grads",
    "make_train_epoch",
    "make_train_step",
    "observe",
    "orthogonal",
    "per_example",
    "piecewise_constant",
    "predict",
    "read_note",
    "remat",
    "remove_unfinished",
    "repeat",
    "replace_file",
    "replicate",
    "sample_disk",
    "save",
    "scale_gradient",
    "sgd",
    "shard_batch",
    "standard_normal",
    "summary",
    "with_compute_dtype",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
