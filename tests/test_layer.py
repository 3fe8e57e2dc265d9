"""The triple itself and the checks on arguments."""

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn._checks import check_array


def test_a_layer_unpacks_and_takes_another_backward():
    layer = fnn.Tanh()
    init, forward, backward = layer
    assert (init, forward, backward) == (layer.init, layer.forward, layer.backward)
    reversed_gradient = layer._replace(backward=lambda params, y, dy: ((), -dy))
    _, y = reversed_gradient.forward((), jnp.ones(3))
    assert jnp.all(reversed_gradient.backward((), y, jnp.ones(3))[1] == -1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.Linear(0, 2), "Linear: expected dim_in to be an integer >= 1, got 0"),
        (lambda: fnn.Linear(2, -1), "Linear: expected dim_out to be an integer >= 1, got -1"),
        (lambda: fnn.Linear(2.0, 1), "expected dim_in to be an integer >= 1, got 2.0"),
        (lambda: fnn.Linear(2, True), "expected dim_out to be an integer >= 1, got True"),
        (lambda: fnn.Linear("2", 1), "expected dim_in to be an integer >= 1, got '2'"),
        (lambda: fnn.LeakyReLU(-0.1), "expected negative_slope to be a finite number >= 0"),
        (lambda: fnn.LeakyReLU(jnp.array(-0.1)), "expected negative_slope to be a finite"),
        (lambda: fnn.LeakyReLU(jnp.ones(2)), "expected negative_slope to be a finite number"),
        (lambda: fnn.LeakyReLU(float("nan")), "expected negative_slope .* got nan"),
        (lambda: fnn.LeakyReLU(True), "expected negative_slope .* got True"),
        (lambda: fnn.sgd(1j), "expected learning_rate .* got 1j"),
        (lambda: fnn.sgd("float32"), "expected learning_rate .* got 'float32'"),
        (lambda: fnn.sgd(None), "expected learning_rate .* got None"),
        (lambda: fnn.LeakyReLU("0.1"), "expected negative_slope .* got '0.1'"),
        (lambda: fnn.Sequential(fnn.Tanh(), fnn.ReLU), "expected a Layer at position 1, got <func"),
        (lambda: fnn.Sequential([fnn.Tanh()]), r"expected a Layer at position 0, got \[Tanh"),
        (lambda: fnn.sgd(-1), "sgd: expected learning_rate to be a finite number >= 0, got -1"),
        (lambda: fnn.sgd(float("inf")), "expected learning_rate .* got inf"),
        (lambda: fnn.sgd(jnp.ones(3)), "expected learning_rate to be a finite number"),
        (lambda: fnn.sgd(0.1, momentum=-0.5), "expected momentum"),
        (lambda: fnn.sgd(0.1, weight_decay=-1), "expected weight_decay"),
        (lambda: fnn.sgd(0.1, nesterov=True), "expected momentum > 0 with nesterov=True"),
        (lambda: fnn.constant(-1), "constant: expected rate"),
        (lambda: fnn.adam(-1), "adam: expected learning_rate to be a finite number >= 0, got -1"),
        (lambda: fnn.adam(0.1, b1=1.0), "adam: expected b1 to be below 1, got 1.0"),
        (lambda: fnn.adam(0.1, b2=-0.1), "adam: expected b2"),
        (lambda: fnn.adam(0.1, eps="0"), "adam: expected eps"),
        (
            lambda: fnn.clip_by_global_norm(fnn.sgd(0.1), 0),
            "expected max_norm to be above 0, got 0",
        ),
        (lambda: fnn.exponential_decay(0.1, 0, 0.5), "expected decay_steps to be an integer >= 1"),
        (lambda: fnn.exponential_decay(0.1, 10, -1), "exponential_decay: expected decay_rate"),
        (lambda: fnn.piecewise_constant([5, 5], [1, 2, 3]), "boundaries in increasing order, got"),
        (lambda: fnn.piecewise_constant([5], [1, 2, 3]), "expected 2 values, one more than bound"),
        (lambda: fnn.piecewise_constant([5], [1, -2]), "piecewise_constant: expected each value"),
        (lambda: fnn.piecewise_constant([0.5], [1, 2]), "each boundary to be an integer >= 0"),
        (lambda: fnn.Embedding(0, 3), "Embedding: expected num_embeddings to be an integer >= 1"),
        (lambda: fnn.cosine_decay(-1.0, 10), "cosine_decay: expected peak"),
        (lambda: fnn.cosine_decay(1.0, 0), "expected total_steps to be an integer >= 1, got 0"),
        (lambda: fnn.cosine_decay(1.0, 5, 5), "warmup_steps to be an integer from 0 to 4, got 5"),
        (lambda: fnn.sample_disk(jax.random.key(0), 0), "expected num_examples to be an integer"),
        (lambda: fnn.sample_disk(jax.random.key(0), 3, radius=-1), "expected radius"),
        (lambda: fnn.sample_disk(jax.random.key(0), 3, center=0.5), r"expected center .* got \(\)"),
    ],
)
def test_constructors_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_may_be_numpy_like_or_traced():
    layer = fnn.Linear(jnp.array(2), jnp.int32(3))
    assert layer.init(jax.random.key(0))["W"].shape == (3, 2)
    slopes = jnp.array([0.0, 0.5])
    run = jax.jit(jax.vmap(lambda slope, x: fnn.LeakyReLU(slope).forward((), x)[0], (0, None)))
    assert run(slopes, jnp.array([-2.0])).tolist() == [[0.0], [-1.0]]


@pytest.mark.parametrize(
    ("shape", "expected", "fits"),
    [
        ((), (...,), True),
        ((3, 2), (...,), True),
        ((2,), (..., 2), True),
        ((4, 3, 2), (..., 2), True),
        ((4, 3, 2), (..., 3, 2), True),
        ((3,), (..., 2), False),
        ((), (..., 2), False),
        ((2,), (..., 3, 2), False),
        ((3, 2), (3, 2), True),
        ((1, 3, 2), (3, 2), False),
        ((2,), (3, 2), False),
        ((1,), (), False),
    ],
)
def test_check_array_compares_shapes(shape, expected, fits):
    if fits:
        check_array("name", "x", jnp.ones(shape), expected)
    else:
        with pytest.raises(ValueError, match="name: expected x of shape"):
            check_array("name", "x", jnp.ones(shape), expected)


@pytest.mark.parametrize("x", [None, "text", [[1.0], [2.0, 3.0]]])
def test_what_is_no_array_is_refused_by_name(x):
    for layer in (fnn.Linear(3, 2), fnn.Embedding(3, 2), fnn.Tanh()):
        with pytest.raises(
            ValueError, match=r"(Linear|Embedding)\(3, 2\)|Tanh\(\): expected x to be"
        ):
            layer.forward(layer.init(jax.random.key(0)), x)
