"""Neural networks whose backward pass is a plain function.

Start with fnn.layer, which states the contract.
"""

__version__ = "0.1.0"

# fmt: off
# isort: off
from fnn._signals import interruptions
from fnn.calibration import calibrate
from fnn.checkpoint import load, read_note, save
from fnn.clipping import clipped_loss_and_grads
from fnn.combinators import Identity, Parallel, Residual, Sequential
from fnn.coupled import reversible
from fnn.curvature import ggn_diagonal
from fnn.datasets import idx_shape as idx_shape  # for callers of earlier versions
from fnn.datasets import load_idx, sample_disk
from fnn.epoch import make_train_epoch
from fnn.files import remove_unfinished, replace_file
from fnn.fitting import Fit, fit
from fnn.halves import split_backward
from fnn.initializers import (
    kaiming_normal, kaiming_uniform, lecun_normal, orthogonal, standard_normal, xavier_normal,
    xavier_uniform, zeros,
)
from fnn.inspection import count_params, find_nonfinite, observe, summary
from fnn.layer import Layer
from fnn.layers.attention import Attention, PositionalEmbedding
from fnn.layers.average_pooling import AvgPool1d, AvgPool2d, AvgPool3d, GlobalAvgPool
from fnn.layers.convolution import Conv1d, Conv2d, Conv3d
from fnn.layers.dropout import Dropout, StochasticDepth
from fnn.layers.flatten import Flatten
from fnn.layers.gates import GELU, GLU, Hardswish, Mish, SiLU
from fnn.layers.linear import Embedding, Linear
from fnn.layers.max_pooling import GlobalMaxPool, MaxPool1d, MaxPool2d, MaxPool3d
from fnn.layers.normalization import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from fnn.layers.piecewise import (
    CELU, ELU, SELU, Hardsigmoid, Hardtanh, LeakyReLU, Maxout, PReLU, ReLU, ReLU6, Threshold,
)
from fnn.layers.recurrent import GRU, LSTM, RNN, LastStep
from fnn.layers.resizing import Pad, Upsample
from fnn.layers.smooth import LogSigmoid, Sigmoid, Softplus, Softsign, Tanh
from fnn.layers.softmax import LogSoftmax, Softmax
from fnn.layers.transposed_convolution import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from fnn.loop import (
    Epoch, Interrupted, NotFiniteError, find_nonfinite_in_epoch, is_finite, load_checkpoint,
    progress, run_epochs, time_left,
)
from fnn.losses import (
    BCELoss, BCEWithLogitsLoss, CosineDistanceLoss, CrossEntropyLoss, HuberLoss, KLDivLoss,
    L1Loss, Loss, MSELoss, NLLLoss, SmoothL1Loss,
)
from fnn.metrics import (
    accuracy, confusion_matrix, f1_score, mean_absolute_error, r2_score, top_k_accuracy,
)
from fnn.optimizers import (
    Optimizer, adagrad, adam, clip_by_global_norm, lion, only, rmsprop, sgd, with_l2,
    with_moving_average,
)
from fnn.preprocessing import Standardize, split, standardize
from fnn.schedules import (
    constant, cosine_decay, exponential_decay, linear_decay, one_cycle, piecewise_constant,
    warmup,
)
from fnn.sequences import MultiHeadAttention, reverse_time
from fnn.sharding import data_parallel_mesh, replicate, shard_batch
from fnn.statistic_rules import linear_squared_norms
from fnn.statistics import kronecker_factors, per_example, second_moments, squared_norms
from fnn.testing import check_layer, check_loss
from fnn.tracing import trace
from fnn.training import (
    TrainState, accumulate_gradients, init_train_state, loss_and_grads, make_train_step,
    predict,
)
from fnn.transforms import (
    as_jax_function, clip_gradient, freeze, remat, repeat, scale_gradient, with_compute_dtype,
)

__all__ = [
    "Attention", "AvgPool1d", "AvgPool2d", "AvgPool3d", "BCELoss", "BCEWithLogitsLoss",
    "BatchNorm", "CELU", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d",
    "ConvTranspose3d", "CosineDistanceLoss", "CrossEntropyLoss", "Dropout", "ELU", "Embedding",
    "Epoch", "Fit", "Flatten", "GELU", "GLU", "GRU", "GlobalAvgPool", "GlobalMaxPool",
    "GroupNorm", "Hardsigmoid", "Hardswish", "Hardtanh", "HuberLoss", "Identity",
    "InstanceNorm", "Interrupted", "KLDivLoss", "L1Loss", "LSTM", "LastStep", "Layer",
    "LayerNorm", "LeakyReLU", "Linear", "LogSigmoid", "LogSoftmax", "Loss", "MSELoss",
    "MaxPool1d", "MaxPool2d", "MaxPool3d", "Maxout", "Mish", "MultiHeadAttention", "NLLLoss",
    "NotFiniteError", "Optimizer", "PReLU", "Pad", "Parallel", "PositionalEmbedding", "RMSNorm",
    "RNN", "ReLU", "ReLU6", "Residual", "SELU", "Sequential", "SiLU", "Sigmoid", "SmoothL1Loss",
    "Softmax", "Softplus", "Softsign", "Standardize", "StochasticDepth", "Tanh", "Threshold",
    "TrainState", "Upsample", "accumulate_gradients", "accuracy", "adagrad", "adam",
    "as_jax_function", "calibrate", "check_layer", "check_loss", "clip_by_global_norm",
    "clip_gradient", "clipped_loss_and_grads", "confusion_matrix", "constant", "cosine_decay",
    "count_params", "data_parallel_mesh", "exponential_decay", "f1_score", "find_nonfinite",
    "find_nonfinite_in_epoch", "fit", "freeze", "ggn_diagonal", "init_train_state",
    "interruptions", "is_finite", "kaiming_normal", "kaiming_uniform", "kronecker_factors",
    "lecun_normal", "linear_decay", "linear_squared_norms", "lion", "load", "load_checkpoint",
    "load_idx", "loss_and_grads", "make_train_epoch", "make_train_step", "mean_absolute_error",
    "observe", "one_cycle", "only", "orthogonal", "per_example", "piecewise_constant",
    "predict", "progress", "r2_score", "read_note", "remat", "remove_unfinished", "repeat",
    "replace_file", "replicate", "reverse_time", "reversible", "rmsprop", "run_epochs",
    "sample_disk", "save", "scale_gradient", "second_moments", "sgd", "shard_batch", "split",
    "split_backward", "squared_norms", "standard_normal", "standardize", "summary", "time_left",
    "top_k_accuracy", "trace", "warmup", "with_compute_dtype", "with_l2", "with_moving_average",
    "xavier_normal", "xavier_uniform", "zeros",
]
