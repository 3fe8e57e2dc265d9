"""Neural networks whose backward pass is a plain function.

Start with fnn.layer, which states the contract.
"""

from fnn.activations import LeakyReLU, ReLU, Sigmoid, Tanh
from fnn.checkpoint import load, save
from fnn.combinators import Sequential
from fnn.datasets import sample_disk
from fnn.initializers import xavier_normal, xavier_uniform, zeros
from fnn.layer import Layer
from fnn.linear import Linear
from fnn.losses import Loss, MSELoss
from fnn.metrics import accuracy
from fnn.optimizers import Optimizer, constant, cosine_decay, sgd
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
    "Layer",
    "LeakyReLU",
    "Linear",
    "Loss",
    "MSELoss",
    "Optimizer",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "TrainState",
    "accuracy",
    "check_layer",
    "check_loss",
    "constant",
    "cosine_decay",
    "init_train_state",
    "load",
    "loss_and_grads",
    "make_train_epoch",
    "make_train_step",
    "predict",
    "sample_disk",
    "save",
    "sgd",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
