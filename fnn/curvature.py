"""ggn_diagonal: the curvature of the loss, element by element, by backward passes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import as_array
from fnn._numerics import upcast
from fnn.layer import Layer
from fnn.losses import Loss, check_is_loss
from fnn.statistics import Rule, second_moments
from fnn.training import check_value, count_examples


def ggn_diagonal(
    model: Layer, loss: Loss, rules: Mapping[str, Rule] | None = None
) -> Callable[..., Any]:
    """f(params, x, target) -> the diagonal of the generalized Gauss-Newton matrix, like params.

    The matrix is the sum over the examples of J^T H J, where J is the derivative of an example's
    prediction by params, and H that of the loss, twice, by the prediction, reduction included. It
    is the loss's Hessian without the second derivatives of the model. Schraudolph, 2002.

    With H = S S^T its diagonal is the sum over the columns of S of (J^T column)^2, element by
    element. So it takes one backward pass of second_moments(model) for each number of an example's
    prediction, and is exact: for MSELoss, CrossEntropyLoss, BCEWithLogitsLoss, and every Loss with
    a hessian_root.

    Shapes: x (batch, ...), target (batch, ...).

    Args:
        rules: as for second_moments.

    Raises:
        ValueError: `model` is not a Layer, or its examples depend on each other; `loss` is not a
            Loss, has no hessian_root, or its value is not of shape (); x and target differ in the
            number of examples.

    The diagonal Laplace approximation draws parameters around trained ones, further where the loss
    is flatter: each with the variance 1 / (c / (2 v) + p). Here c is its curvature for a sum of
    squares, v the variance of the targets' noise, and 1 / p the variance of the prior. The spread
    of the outputs grows away from the data, which are in [-1, 1]:

        >>> from jax.flatten_util import ravel_pytree
        >>> x = jnp.linspace(-1, 1, 50)[:, None]
        >>> target = jnp.sin(3 * x) + 0.1 * jax.random.normal(jax.random.key(0), x.shape)
        >>> model = fnn.Sequential(fnn.Linear(1, 20), fnn.ELU(), fnn.Linear(20, 1))
        >>> fit = fnn.fit(
        ...     model, fnn.MSELoss(), fnn.adam(0.02), x, target,
        ...     epochs=100, batch_size=10, key=jax.random.key(1), progress=False,
        ... )
        >>> curvature = fnn.ggn_diagonal(model, fnn.MSELoss("sum"))(fit.params, x, target)
        >>> c, v, p = ravel_pytree(curvature)[0], fit.history[-1]["train_loss"], 10
        >>> flat, unravel = ravel_pytree(fit.params)
        >>> normal = jax.random.normal(jax.random.key(2), (1000, flat.size))
        >>> drawn = flat + normal / jnp.sqrt(c / (2 * v) + p)
        >>> for place in (0.5, 4.0):
        ...     points = jnp.array([place])
        ...     ys = jax.vmap(lambda one: fnn.predict(model, unravel(one), points))(drawn)
        ...     print(f"at {place}: {ys.std():.1f}")
        at 0.5: 0.4
        at 4.0: 1.6
    """
    check_is_loss("ggn_diagonal", loss)
    if loss.hessian_root is None:
        raise ValueError("ggn_diagonal: expected a loss with a hessian_root, such as MSELoss")
    measured = second_moments(model, rules)

    def evaluate(params, x, target):
        x, target = (as_array("ggn_diagonal", *pair) for pair in (("x", x), ("target", target)))
        count_examples("ggn_diagonal", x, target)
        prediction, residuals = measured.forward(params, x)
        check_value("ggn_diagonal", loss.forward(prediction, target)[0])
        shape = prediction.shape[1:]
        size, zeros = math.prod(shape), jnp.zeros_like(prediction)

        def add_column(total, index):
            one = jax.nn.one_hot(index, size, dtype=prediction.dtype).reshape(1, *shape)
            unit = zeros + jnp.broadcast_to(one, prediction.shape)
            dy = loss.hessian_root(prediction, target, unit)
            moments, _ = measured.backward(params, residuals, dy)
            return jax.tree.map(lambda a, b: a + upcast(b), total, moments), None

        start = jax.tree.map(lambda p: jnp.zeros_like(upcast(p)), params)
        total, _ = jax.lax.scan(add_column, start, jnp.arange(size))
        return jax.tree.map(lambda a, p: a.astype(jnp.asarray(p).dtype), total, params)

    return evaluate
