"""What passes through a model, layer by layer, and where it first stops being finite."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.inspection import map_layers
from fnn.layer import Layer, check_layers, global_norm, made_of, parts_of
from fnn.losses import Loss


def observe(layer: Layer, callback: Callable[[str, str, dict[str, jax.Array]], None]) -> Layer:
    """The layer, calling callback(place, direction, statistics) for all that passes through it.

    Changes nothing but what you see, under jit too, where jax.debug.callback calls back while
    the program runs. Every layer reports, and so do the combinators and transforms around it,
    Sequential excepted: place is "2.0 Linear(25, 2)" for the first layer of the third, and
    "2.Residual Linear(25, 25)" for the layer in a Residual there, which is "2 Residual". Inside a
    scan or vmap a layer reports once a turn or example, and inside remat once more in backward.

    direction is "parameters" and "forward" for params and y on the way forward, "grads" and
    "backward" for grads and dx on the way back; statistics are {"norm": the root of the sum of
    squares, "nonfinite": the number of NaNs and infinities}, both of shape (), over all of them.
    What has no floating elements is not reported. Under jit, reports of one program may come in
    another order.

    Raises:
        ValueError: `layer` is not a Layer; callback cannot be called.
    """
    check_layers("observe", (layer,))
    if not callable(callback):
        raise ValueError(f"observe: expected callback to be a function, got {callback!r}")

    def observed(place, kind, layer):
        report = functools.partial(_report, callback, f"{place} {kind}".strip())
        parts = parts_of(layer)

        @functools.wraps(layer.forward)
        def forward(params, x, key=None):
            if parts is None:  # the parameters are its own
                report("parameters", params)
            y, residuals = layer.forward(params, x, key)
            report("forward", y)
            return y, residuals

        def backward(params, residuals, dy):
            grads, dx = layer.backward(params, residuals, dy)
            report("grads", grads)
            report("backward", dx)
            return grads, dx

        changed = layer._replace(forward=forward, backward=backward)
        if parts is None:
            return changed

        def rebuild(*layers):
            return observed(place, kind, parts.rebuild(*layers))

        return made_of(parts.layers, parts.kind, rebuild, changed)

    return map_layers(observed, layer)


def find_nonfinite(
    model: Layer, loss: Loss, params: Any, x: jax.Array, target: jax.Array, key: Any = None
) -> tuple[str, str] | None:
    """(place, direction) of the first NaN or infinity in one forward and backward pass, or None.

    Places and directions are those of observe, in the order in which a training step meets them;
    before and between the layers they are ("x", "forward"), ("target", "forward"),
    ("loss", "forward") for its value and ("loss", "backward") for the derivative by the
    prediction. Arguments as for loss_and_grads(model, loss). The passes are not compiled: one
    operation runs after the other, and the copies in a repeat too.

    Raises:
        ValueError: it is called under jit, vmap or another transformation of JAX.
    """
    arrays = jax.tree.leaves((params, x, target, key))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in arrays):
        raise ValueError("find_nonfinite: expected arrays with values, got ones that are traced")
    found = []

    def callback(place, direction, statistics):
        if statistics["nonfinite"]:
            found.append((place, direction))

    report = functools.partial(_report, callback)
    observed = observe(model, callback)
    with jax.disable_jit(), jax.debug_nans(False), jax.debug_infs(False):
        report("x", "forward", x)
        report("target", "forward", target)
        prediction, residuals = observed.forward(params, x, key)
        value, loss_residuals = loss.forward(prediction, target)
        report("loss", "forward", value)
        d_prediction = loss.backward(loss_residuals)
        report("loss", "backward", d_prediction)
        observed.backward(params, residuals, d_prediction)
    return found[0] if found else None


def _report(callback, place, direction, tree):
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    leaves = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if leaves:
        with jax.disable_jit(False):
            statistics = _statistics(leaves)
        jax.debug.callback(functools.partial(callback, place, direction), statistics)


@jax.jit
def _statistics(leaves):
    nonfinite = sum(jnp.sum(~jnp.isfinite(leaf)) for leaf in leaves)
    return {"norm": global_norm(leaves), "nonfinite": nonfinite}
