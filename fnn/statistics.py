"""Statistics: a model -> the model whose backward gives another quantity in place of grads.

    squares = fnn.squared_norms(model)
    value, statistic = fnn.loss_and_grads(squares, fnn.MSELoss("sum"))(params, x, target)

The statistic is a tree like params with other leaves. It is that of dy as it comes: a loss that
averages over n examples divides each example's gradient by n, and "sum" does not.

y and dx are the model's own. fnn's combinators and transforms are looked into, and the layers
inside are changed. One of your own goes through per_example as a whole, because it may share
parameters between the layers inside.

A rule says how a layer's statistic follows from its saved tensors. It is one function

    (layer, params, residuals, dy) -> statistic

and stands under the layer's name without its arguments: rules={"Linear": function}. fnn's own rules
are for fnn's own passes. So a layer of one's own of the same name does not meet them, nor does one
that _replace gave another forward or backward. A layer with parameters and without a rule goes
through per_example: nothing is refused because it is unknown. If it uses a key, example i draws
from fold_in(key, i) there, and so draws other numbers than in the model itself. A frozen layer has
a statistic of zeros.

x is (batch, ...). A layer whose examples depend on each other, as BatchNorm's do, is refused.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array
from fnn.inspection import map_layers, opens
from fnn.layer import Layer, check_is_layer, name_of_first, transformed, type_of
from fnn.statistic_rules import (
    KRONECKER_FACTORS,
    SECOND_MOMENTS,
    SQUARED_NORMS,
    squares,
    sum_of_squares,
)

Rule = Callable[[Layer, Any, Any, jax.Array], Any]

# fnn's combinators and transforms. One of the user's own may share parameters, or have some.
OPENED = ("Sequential", "Residual", "Parallel", "StochasticDepth", "repeat", "reversible", "remat")
OPENED += ("with_compute_dtype", "freeze", "scale_gradient", "clip_gradient", "reverse_time")
_is_opened = opens(OPENED)


def per_example(layer: Layer) -> Layer:
    """The layer with a gradient for each example: vmap of forward and backward over x's first axis.

    Changes grads: every leaf gains a first axis, the batch. The sum over it is the layer's grads.
    They take the memory of one copy of params for each example. squared_norms and second_moments
    say what is often wanted of them, in less. Example i draws from fold_in(key, i) under vmap.
    (Keys of JAX's implementation "rbg" draw other numbers under vmap than outside it.)

    Shapes: x (batch, ...), y (batch, ...), as the layer's; grads (batch, *shape) for params of
    that shape.

    Raises:
        ValueError: `layer` is not a Layer; its examples depend on each other, as BatchNorm's do; x
            has no axis.

    These are the gradients of 4 examples, one below the other:

        >>> each, loss = fnn.per_example(fnn.Linear(2, 3)), fnn.MSELoss("sum")
        >>> params = each.init(jax.random.key(0))
        >>> _, grads = fnn.loss_and_grads(each, loss)(params, jnp.ones((4, 2)), jnp.ones((4, 3)))
        >>> grads["W"].shape
        (4, 3, 2)
    """
    _check_each_by_itself("per_example", layer)

    def forward(params, x, key=None):
        x = as_array("per_example", "x", x)
        if x.ndim == 0:
            raise ValueError("per_example: expected x of shape (batch, ...), got ()")
        y, residuals = jax.vmap(forward_one, (None, 0, None), axis_name="example")(params, x, key)
        return y, (residuals, type_of(y))

    def forward_one(params, x, key):
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index("example"))
        return layer.forward(params, x, key)

    def backward(params, residuals, dy):
        residuals, y_type = residuals
        dy = check_array("per_example", "dy", dy, *y_type)
        return jax.vmap(layer.backward, (None, 0, 0))(params, residuals, dy)

    return transformed(layer, per_example, forward=forward, backward=backward)


def squared_norms(model: Layer, rules: Mapping[str, Rule] | None = None) -> Layer:
    """The model with each example's squared gradient norm, |grad|^2, leaf by leaf.

    Changes grads: every leaf has shape (batch,), in float32 for parameters of 16 bits. In a repeat
    it is (n, batch). The sum of jax.tree.leaves(statistic) is that of the whole model, for a model
    without a repeat.

    Linear, the convolutions, also transposed ones, and Embedding have rules. These form no
    example's gradient where the positions are few: see fnn.linear_squared_norms. Other layers go
    through per_example; those of fnn have few parameters, or are recurrent.

    Raises:
        ValueError: `model` is not a Layer; its examples depend on each other; x has no batch axis.

    Importance sampling draws examples in proportion to the norms of their gradients. Each drawn
    gradient is divided by its chance and by the number of draws. Then their sum is, on average, the
    gradient of all examples. After so many draws as here it is close:

        >>> x = jax.random.normal(jax.random.key(0), (200, 2))
        >>> model, loss, target = fnn.Linear(2, 1), fnn.MSELoss("sum"), x[:, :1] * x[:, 1:]
        >>> params = model.init(jax.random.key(1))
        >>> _, squares = fnn.loss_and_grads(fnn.squared_norms(model), loss)(params, x, target)
        >>> norms = jnp.sqrt(sum(jax.tree.leaves(squares)))
        >>> chance = norms / norms.sum()
        >>> drawn = jax.random.choice(jax.random.key(2), 200, (20000,), p=chance)
        >>> y, residuals = model.forward(params, x[drawn])
        >>> dy = 2 * (y - target[drawn]) / (20000 * chance[drawn, None])
        >>> estimate, _ = model.backward(params, residuals, dy)
        >>> _, grads = fnn.loss_and_grads(model, loss)(params, x, target)
        >>> print(estimate["W"], grads["W"])
        [[ 228... -361...]] [[ 228... -361...]]
    """
    otherwise = functools.partial(_through_per_example, squares)
    return _with_statistic("squared_norms", model, SQUARED_NORMS, rules, otherwise)


def summed_like_squared_norms(model: Layer, rules: Mapping[str, Rule] | None = None) -> Layer:
    """The model with its own grads, and with the residuals of squared_norms(model, rules).

    So both backward passes of clipped_loss_and_grads read one forward pass.
    """
    kept, of_user = dict.fromkeys(SQUARED_NORMS), dict.fromkeys(rules or {})
    otherwise = functools.partial(_through_per_example, lambda grads: jnp.sum(grads, axis=0))
    return _with_statistic("squared_norms", model, kept, of_user, otherwise)


def second_moments(model: Layer, rules: Mapping[str, Rule] | None = None) -> Layer:
    """The model whose grads are the sum over the examples of grad^2, element by element.

    The leaves have the shapes of params, in float32 for parameters of 16 bits. Take a loss with the
    reduction "sum": a mean divides each gradient by n. With the mean gradient g of n examples, the
    variance of an element is second_moment / n - g^2.

    Raises:
        ValueError: as squared_norms.

    The gradient noise scale is the sum of these variances, divided by |g|^2. A batch larger than it
    helps little: McCandlish et al., 2018, https://arxiv.org/abs/1812.06162. Here it grows from
    epoch to epoch, because g becomes smaller and the noise of the targets does not:

        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> x, noise = jax.random.normal(keys[0], (64, 3)), jax.random.normal(keys[1], (64, 1))
        >>> target = x.sum(axis=1, keepdims=True) + noise
        >>> model, loss, optimizer = fnn.Linear(3, 1), fnn.MSELoss("sum"), fnn.sgd(0.0025)
        >>> def total(tree):
        ...     return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))
        >>> def noise_scale(params):
        ...     _, moments = fnn.loss_and_grads(fnn.second_moments(model), loss)(params, x, target)
        ...     _, grads = fnn.loss_and_grads(model, loss)(params, x, target)
        ...     squared = total(jax.tree.map(lambda grad: (grad / len(x)) ** 2, grads))
        ...     return total(moments) / len(x) / squared - 1
        >>> epoch = fnn.make_train_epoch(model, loss, optimizer, batch_size=8)
        >>> state = fnn.init_train_state(model, optimizer, keys[2])
        >>> for number in range(5):
        ...     print(f"{noise_scale(state.params):.1f}")
        ...     state, _ = epoch(state, x, target, jax.random.key(number))
        4.4
        4.9
        5.9
        8.5
        14.2
    """
    otherwise = functools.partial(_through_per_example, sum_of_squares)
    return _with_statistic("second_moments", model, SECOND_MOMENTS, rules, otherwise)


def kronecker_factors(model: Layer, rules: Mapping[str, Rule] | None = None) -> Layer:
    """The model with (A, G) for each Linear, Conv1d, Conv2d and Conv3d; None for other parameters.

        A = mean of x x^T,    G = sum of dy dy^T,    both over examples and positions

    Their Kronecker product approximates the sum over the examples of grad grad^T. Martens and
    Grosse, 2015; for convolutions Grosse and Martens, 2016. x is a column here. For a convolution
    it is the patch that the kernel meets, in the order of W's axes.

    Changes grads: "W" has (A, G), and "b" None. The bias is folded in: where a layer has one, x
    has a 1 at its end, and A a row and a column more. A convolution with groups has None.

    Raises:
        ValueError: as squared_norms.

    For one example A kron G is grad grad^T, here for the elements of W one column after the other:

        >>> model, loss = fnn.Linear(2, 3, bias=False), fnn.MSELoss("sum")
        >>> params, x = model.init(jax.random.key(0)), jnp.array([[1.0, 2.0]])
        >>> args = params, x, jnp.ones((1, 3))
        >>> _, factors = fnn.loss_and_grads(fnn.kronecker_factors(model), loss)(*args)
        >>> _, grads = fnn.loss_and_grads(model, loss)(*args)
        >>> g = grads["W"].T.reshape(6)
        >>> bool(jnp.allclose(jnp.kron(*factors["W"]), jnp.outer(g, g), rtol=1e-5))
        True
    """

    def without(layer):
        def backward(params, residuals, dy):
            _, dx = layer.backward(params, residuals, dy)
            return jax.tree.map(lambda _: None, params), dx

        return layer._replace(backward=backward)

    return _with_statistic("kronecker_factors", model, KRONECKER_FACTORS, rules, without)


def _with_statistic(name, model, own_rules, rules, otherwise):
    """The model whose layers have the statistic of a rule, or are otherwise(layer).

    rules go by the layer's name, own_rules by the kind of a layer of fnn. A rule of None leaves the
    layer as it is.
    """
    _check_each_by_itself(name, model)

    def change(place, layer):
        given, kind = layer.name.partition("(")[0], layer.settings.get("kind")
        if rules and given in rules:
            rule = rules[given]
        elif kind in own_rules:
            rule = own_rules[kind]
        else:
            return layer if _is_opened(layer) else otherwise(layer)
        if rule is None:
            return layer

        def backward(params, residuals, dy):
            _, dx = layer.backward(params, residuals, dy)
            return rule(layer, params, residuals, dy), dx

        return layer._replace(backward=backward)

    return map_layers(change, model, opened=_is_opened)


def _through_per_example(of_examples, layer):
    """The layer with of_examples(grads of per_example)."""
    each = per_example(layer)

    def forward(params, x, key=None):
        return (each if jax.tree.leaves(params) else layer).forward(params, x, key)

    def backward(params, residuals, dy):
        if not jax.tree.leaves(params):
            return layer.backward(params, residuals, dy)
        grads, dx = each.backward(params, residuals, dy)
        return jax.tree.map(of_examples, grads), dx

    facts = {"name": layer.name, "uses_key": layer.uses_key}
    return Layer(layer.init, forward, backward, **facts)


def _check_each_by_itself(name, layer):
    check_is_layer(name, layer)
    if layer.couples_examples:
        got = name_of_first(layer, "couples_examples")
        raise ValueError(f"{name}: expected each example by itself, got {got}")
