"""Neural networks whose backward pass is a plain function.

Start with fnn.layer, which states the contract.
"""

__version__ = "0.1.0"

# fmt: off
# isort: off
from fnn._signals import interruptions
from fnn.checkpoint import load, read_note, save
from fnn.combinators import Identity, Parallel, Residual, Sequential
from fnn.datasets import idx_shape as idx_shape  # for callers of earlier versions
from fnn.datasets import load_idx, sample_disk
from fnn.epoch import make_train_epoch
from fnn.files import remove_unfinished, replace_file
from fnn.fitting import Fit, fit
from fnn.initializers import (
    kaiming_normal, kaiming_uniform, lecun_normal, orthogonal, standard_normal, xavier_normal,
    xavier_uniform, zeros,
)
from fnn.inspection import count_params, find_nonfinite, observe, summary
from fnn.layer import Layer
from fnn.layers.activations import (
    ELU, GELU, LeakyReLU, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh,
)
from fnn.layers.convolution import Conv1d, Conv2d, Conv3d
from fnn.layers.dropout import Dropout
from fnn.layers.flatten import Flatten
from fnn.layers.linear import Embedding, Linear
from fnn.layers.normalization import LayerNorm, RMSNorm
from fnn.layers.pooling import AvgPool2d, MaxPool2d
from fnn.layers.transposed_convolution import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from fnn.loop import (
    Epoch, Interrupted, NotFiniteError, find_nonfinite_in_epoch, is_finite, load_checkpoint,
    progress, run_epochs, time_left,
)
from fnn.losses import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, Loss, MSELoss
from fnn.metrics import (
    accuracy, confusion_matrix, f1_score, mean_absolute_error, r2_score, top_k_accuracy,
)
from fnn.optimizers import Optimizer, adam, clip_by_global_norm, sgd
from fnn.preprocessing import Standardize, split, standardize
from fnn.schedules import constant, cosine_decay, exponential_decay, piecewise_constant
from fnn.sharding import data_parallel_mesh, replicate, shard_batch
from fnn.statistics import linear_squared_norms, per_example
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
    "AvgPool2d", "BCEWithLogitsLoss", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d",
    "ConvTranspose2d", "ConvTranspose3d", "CrossEntropyLoss", "Dropout", "ELU", "Embedding",
    "Epoch", "Fit", "Flatten", "GELU", "HuberLoss", "Identity", "Interrupted", "L1Loss",
    "Layer", "LayerNorm", "LeakyReLU", "Linear", "LogSoftmax", "Loss", "MSELoss", "MaxPool2d",
    "NotFiniteError", "Optimizer", "Parallel", "RMSNorm", "ReLU", "Residual", "Sequential",
    "SiLU", "Sigmoid", "Softmax", "Softplus", "Standardize", "Tanh", "TrainState",
    "accumulate_gradients", "accuracy", "adam", "as_jax_function", "check_layer", "check_loss",
    "clip_by_global_norm", "clip_gradient", "confusion_matrix", "constant", "cosine_decay",
    "count_params", "data_parallel_mesh", "exponential_decay", "f1_score", "find_nonfinite",
    "find_nonfinite_in_epoch", "fit", "freeze", "init_train_state", "interruptions",
    "is_finite", "kaiming_normal", "kaiming_uniform", "lecun_normal", "linear_squared_norms",
    "load", "load_checkpoint", "load_idx", "loss_and_grads", "make_train_epoch",
    "make_train_step", "mean_absolute_error", "observe", "orthogonal", "per_example",
    "piecewise_constant", "predict", "progress", "r2_score", "read_note", "remat",
    "remove_unfinished", "repeat", "replace_file", "replicate", "run_epochs", "sample_disk",
    "save", "scale_gradient", "sgd", "shard_batch", "split", "standard_normal", "standardize",
    "summary", "time_left", "top_k_accuracy", "trace", "with_compute_dtype", "xavier_normal",
    "xavier_uniform", "zeros",
]
