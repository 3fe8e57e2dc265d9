"""check_layer and check_loss accept right backward passes and name what is wrong in others."""

import re

import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn

key = jax.random.key(0)
linear = fnn.Linear(3, 3)


def wrong_linear(change):
    """Linear with its backward's (grads, dx) changed."""

    def backward(params, x, dy):
        grads, dx = linear.backward(params, x, dy)
        return change(grads, dx)

    return linear._replace(backward=backward)


def wrong_activation(layer, derivative):
    return layer._replace(backward=lambda params, y, dy: ((), dy * derivative(y)))


MUTANTS = {
    "dW-scaled": (
        wrong_linear(lambda grads, dx: ({**grads, "W": 1.001 * grads["W"]}, dx)),
        r"grads\['W'\] .*off by",
    ),
    "dW-element-zeroed": (
        wrong_linear(lambda grads, dx: ({**grads, "W": grads["W"].at[2, 1].set(0)}, dx)),
        r"grads\['W'\] .* at \[2, 1\]: backward gives 0, .* 1 of 9 places",
    ),
    "dW-transposed": (
        wrong_linear(lambda grads, dx: ({**grads, "W": grads["W"].T}, dx)),
        r"grads\['W'\]",
    ),
    "db-averaged": (
        wrong_linear(lambda grads, dx: ({**grads, "b": grads["b"] / 3}, dx)),
        r"grads\['b'\] .* 3 of 3 places",
    ),
    "db-missing": (
        wrong_linear(lambda grads, dx: ({"W": grads["W"]}, dx)),
        "expected grads to be .*'b'.* got",
    ),
    "db-of-wrong-shape": (
        wrong_linear(lambda grads, dx: ({**grads, "b": grads["b"][None]}, dx)),
        r"expected grads to be .*float64\[3\].* got .*float64\[1, 3\]",
    ),
    "dW-in-float32": (
        wrong_linear(lambda grads, dx: (jax.tree.map(jnp.float32, grads), dx)),
        "expected grads to be .*float64.* got .*float32",
    ),
    "dx-scaled": (wrong_linear(lambda grads, dx: (grads, 0.999 * dx)), "dx disagrees"),
    "dx-transposed": (wrong_linear(lambda grads, dx: (grads, dx.T)), "dx disagrees"),
    "dx-nan": (wrong_linear(lambda grads, dx: (grads, dx * jnp.nan)), "backward gives nan"),
    "dx-first": (wrong_linear(lambda grads, dx: (dx, grads)), "expected grads to be"),
    "tanh-at-y": (wrong_activation(fnn.Tanh(), lambda y: 1 - jnp.tanh(y) ** 2), "dx disagrees"),
    "sigmoid-at-y": (
        wrong_activation(fnn.Sigmoid(), lambda y: jax.nn.sigmoid(y) * (1 - jax.nn.sigmoid(y))),
        "dx disagrees",
    ),
    "relu-of-dy": (
        fnn.ReLU()._replace(backward=lambda params, y, dy: ((), jnp.maximum(dy, 0))),
        "dx disagrees",
    ),
    "tanh-ignores-dy": (
        fnn.Tanh()._replace(backward=lambda params, y, dy: ((), 1 - y**2)),
        "dx disagrees",
    ),
}


@pytest.mark.parametrize(("mutant", "message"), MUTANTS.values(), ids=MUTANTS.keys())
def test_check_layer_rejects(mutant, message):
    with pytest.raises(AssertionError, match=message):
        fnn.check_layer(mutant, draw(1, (3, 3)), key)


def test_check_layer_names_the_layer_inside_a_network():
    mutant, _ = MUTANTS["dW-scaled"]
    network = fnn.Sequential(fnn.Tanh(), fnn.Sequential(mutant), fnn.Sigmoid())
    with pytest.raises(AssertionError, match=r"grads\[1\]\[0\]\['W'\] disagrees"):
        fnn.check_layer(network, draw(1, (3, 3)), key)


def test_check_layer_sees_one_wrong_element_among_many():
    layer = fnn.Linear(40, 50)

    def backward(params, x, dy):
        grads, dx = layer.backward(params, x, dy)
        return {**grads, "W": grads["W"].at[20, 3].multiply(1.01)}, dx

    with pytest.raises(AssertionError, match=r"\['W'\] .* and the next 1: .* 1 of 1024 places"):
        fnn.check_layer(layer._replace(backward=backward), draw(1, (2, 40)), key)


def test_check_layer_sees_two_neighbours_swapped_among_many():
    layer = fnn.Linear(40, 50)

    def backward(params, x, dy):
        grads, dx = layer.backward(params, x, dy)
        pair = grads["W"][20, 2:4]
        return {**grads, "W": grads["W"].at[20, 2:4].set(pair[::-1])}, dx

    with pytest.raises(AssertionError, match=r"grads\['W'\] disagrees"):
        fnn.check_layer(layer._replace(backward=backward), draw(1, (2, 40)), key)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2, 1e4, 1e6])
def test_check_layer_sees_small_errors_at_any_size_of_x(scale):
    error = 1.00002 if scale < 1e4 else 1.001
    wrong = wrong_linear(lambda grads, dx: (grads, error * dx))
    with pytest.raises(AssertionError, match="dx disagrees"):
        fnn.check_layer(wrong, scale * draw(1, (3, 3)), key)
    fnn.check_layer(linear, scale * draw(1, (3, 3)), key)


def test_check_layer_names_the_place_of_a_nan():
    wrong = wrong_linear(lambda grads, dx: (grads, dx.at[1, 2].set(jnp.nan)))
    with pytest.raises(AssertionError, match=r"dx disagrees .* at \[1, 2\]: backward gives nan"):
        fnn.check_layer(wrong, draw(1, (3, 3)), key)


def test_check_layer_refuses_a_forward_in_lower_precision():
    def forward(params, x, key=None):
        return jnp.tanh(x).astype(jnp.float32), x

    blind = fnn.Layer(lambda key: (), forward, lambda params, x, dy: ((), 0 * x))
    with pytest.raises(AssertionError, match=r"expected y to be float64\[3\], got float32\[3\]"):
        fnn.check_layer(blind, draw(1, (3,)), key)


def test_check_layer_takes_empty_batches_lists_and_integers():
    fnn.check_layer(linear, jnp.ones((0, 3)), key)
    fnn.check_layer(fnn.Tanh(), [0.5, -0.5], key)

    def forward(params, x, key=None):
        return params["scale"] * x[params["order"]], x

    def backward(params, x, dy):
        back = jnp.zeros_like(x).at[params["order"]].add(params["scale"] * dy)
        scale = jnp.vdot(dy, x[params["order"]])
        return {"scale": scale, "order": jnp.zeros_like(params["order"])}, back

    def init(key):
        return {"scale": jnp.ones(()), "order": jnp.array([2, 0, 1])}

    fnn.check_layer(fnn.Layer(init, forward, backward), draw(1, (3,)), key)


def test_check_layer_sees_what_initial_parameters_hide():
    """With a scale of 1 and a bias of 0, forgetting the scale in dx makes no difference."""

    def forward(params, x, key=None):
        scale = jnp.broadcast_to(params, x.shape)
        return scale * x, x

    def backward(params, x, dy):
        return jnp.sum(dy * x, axis=0), dy

    forgetful = fnn.Layer(lambda key: jnp.ones(3), forward, backward)
    with pytest.raises(AssertionError, match="dx disagrees"):
        fnn.check_layer(forgetful, draw(1, (2, 3)), key)


def test_check_layer_checks_a_random_layer_with_its_key():
    def forward(params, x, key=None):
        mask = 1.0 if key is None else jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)
        return x * mask, mask

    right = fnn.Layer(lambda key: (), forward, lambda params, mask, dy: ((), dy * mask))
    fnn.check_layer(right, draw(1, (4, 3)), key)
    wrong = right._replace(backward=lambda params, mask, dy: ((), dy))
    with pytest.raises(AssertionError, match="dx disagrees"):
        fnn.check_layer(wrong, draw(1, (4, 3)), key)


@pytest.mark.parametrize("x64", [False, True])
def test_check_layer_leaves_x64_as_it_was(x64):
    with jax.enable_x64(x64):
        fnn.check_layer(fnn.Tanh(), draw(1, (2,)), key)
        assert jax.config.jax_enable_x64 == x64
        with pytest.raises(AssertionError):
            fnn.check_layer(MUTANTS["tanh-at-y"][0], draw(1, (2,)), key)
        assert jax.config.jax_enable_x64 == x64


def test_check_layer_passes_on_what_forward_raises():
    with pytest.raises(ValueError, match=r"Linear\(3, 3\): expected x of shape \(..., 3\)"):
        fnn.check_layer(linear, draw(1, (2, 4)), key)


def forward_alone(params, x, key=None):
    return linear.forward(params, x)[0]


def dx_alone(params, x, dy):
    return linear.backward(params, x, dy)[1]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        (
            {"forward": forward_alone},
            r"expected forward to return \(y, residuals\), got float64\[2, 3\]",
        ),
        (
            {"forward": lambda params, x, key: (x, x, x)},
            r"expected forward to return \(y, residuals\), got \('float64\[2, 3\]', .*\)",
        ),
        ({"forward": lambda params, x, key: ([x], x)}, r"expected y to be an array, got \['float"),
        ({"forward": lambda params, x, key: None}, "return .*, got None"),
        (
            {"backward": dx_alone},
            r"expected backward to return \(grads, dx\), got float64\[2, 3\]",
        ),
        ({"backward": lambda params, x, dy: {"W": dy}}, r"\(grads, dx\), got \{'W': 'float64"),
        ({"backward": lambda params, x, dy: (params, None)}, "expected dx to be .*, got None"),
        ({"backward": lambda params, x, dy: (params, 0.0)}, r"expected dx to be .*, got float\b"),
        ({"backward": lambda params, x, dy: (None, dy)}, "expected grads to be .*, got None"),
    ],
    ids=["y", "three", "list", "None", "dx", "grads", "no dx", "number", "no grads"],
)
def test_check_layer_says_what_a_function_has_to_return(functions, message):
    """Also for a batch of two, which Python unpacks as if it were a pair."""
    with pytest.raises(AssertionError, match=f"^check_layer: .*{message}"):
        fnn.check_layer(linear._replace(**functions), draw(1, (2, 3)), key)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"forward": lambda params, x: (x, x)}, r"called forward\(params, x, key\)"),
        ({"backward": lambda x, dy: ((), dy)}, r"called backward\(params, residuals, dy\)"),
    ],
    ids=["forward", "backward"],
)
def test_check_layer_says_with_what_it_called(functions, message):
    with pytest.raises(TypeError, match="positional argument") as error:
        fnn.check_layer(linear._replace(**functions), draw(1, (2, 3)), key)
    assert any(re.search(message, note) for note in error.value.__notes__)


def test_the_checks_refuse_what_is_no_layer_or_loss():
    with pytest.raises(ValueError, match="check_layer: expected a Layer at position 0"):
        fnn.check_layer(tuple(linear), draw(1, (2, 3)), key)
    with pytest.raises(ValueError, match="check_loss: expected a Loss"):
        fnn.check_loss(linear, draw(1, (4, 2)), draw(2, (4, 2)))


@pytest.mark.parametrize("forward", [lambda p, t: jnp.sum(p - t), lambda p, t: p - t])
def test_check_loss_says_what_forward_has_to_return(forward):
    expected = r"check_loss: expected forward to return \(value, residuals\), got float64\["
    with pytest.raises(AssertionError, match=expected):
        fnn.check_loss(fnn.Loss(forward, jnp.ones_like), draw(1, (2, 2)), draw(2, (2, 2)))


@pytest.mark.parametrize("factor", [1.001, -1.0, 0.5, 0.0])
def test_check_loss_rejects_a_scaled_derivative(factor):
    loss = fnn.MSELoss()
    wrong = loss._replace(backward=lambda residuals: factor * loss.backward(residuals))
    with pytest.raises(AssertionError, match=r"check_loss: d_prediction disagrees .* at \["):
        fnn.check_loss(wrong, draw(1, (4, 2)), draw(2, (4, 2)))


def test_check_loss_rejects_a_value_that_is_no_scalar():
    loss = fnn.Loss(lambda p, t: (jnp.square(p - t), p - t), lambda difference: 2 * difference)
    with pytest.raises(AssertionError, match=r"expected value to be float64\[\], got"):
        fnn.check_loss(loss, draw(1, (4, 2)), draw(2, (4, 2)))
