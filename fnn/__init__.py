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
from fnn.datasets import load_idx, sample_disk
from fnn.dropout import Dropout
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
from fnn.linear import Embedding, Linear
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
    init_train_state,
    loss_and_grads,
    make_train_epoch,
    make_train_step,
    predict,
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
    "accuracy",
    "adam",
    "check_layer",
    "check_loss",
    "clip_by_global_norm",
    "constant",
    "cosine_decay",
    "count_params",
    "data_parallel_mesh",
    "exponential_decay",
    "init_train_state",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "load",
    "load_idx",
    "loss_and_grads",
    "make_train_epoch",
    "make_train_step",
    "orthogonal",
    "piecewise_constant",
    "predict",
    "read_note",
    "replicate",
    "sample_disk",
    "save",
    "sgd",
    "shard_batch",
    "standard_normal",
    "summary",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
