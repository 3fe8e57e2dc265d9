"""Optimizers. An optimizer is a pair of pure functions: init makes a state, update uses it.

fnn.optimizers.rules has the optimizers, and fnn.optimizers.wrappers makes others of them.
"""

from fnn.optimizers._frame import LAST_STEP, Optimizer, check_is_optimizer
from fnn.optimizers.rules import (
    AdagradState,
    AdamState,
    LionState,
    RMSPropState,
    SGDState,
    adagrad,
    adam,
    lion,
    rmsprop,
    sgd,
)
from fnn.optimizers.wrappers import (
    MovingAverageState,
    OnlyState,
    clip_by_global_norm,
    only,
    with_l2,
    with_moving_average,
)

__all__ = [
    "LAST_STEP",
    "AdagradState",
    "AdamState",
    "LionState",
    "MovingAverageState",
    "OnlyState",
    "Optimizer",
    "RMSPropState",
    "SGDState",
    "adagrad",
    "adam",
    "check_is_optimizer",
    "clip_by_global_norm",
    "lion",
    "only",
    "rmsprop",
    "sgd",
    "with_l2",
    "with_moving_average",
]
