"""The triple itself and the checks on arguments."""

import copy

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, layer_inputs

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
            "expected max_norm to be a finite number above 0, got 0",
        ),
        (lambda: fnn.exponential_decay(0.1, 0, 0.5), "expected decay_steps to be an integer >= 1"),
        (lambda: fnn.exponential_decay(0.1, 10, -1), "exponential_decay: expected decay_rate"),
        (lambda: fnn.piecewise_constant([5, 5], [1, 2, 3]), "boundaries in increasing order, got"),
        (lambda: fnn.piecewise_constant([5], [1, 2, 3]), "expected 2 values, one more than bound"),
        (lambda: fnn.piecewise_constant([5], [1, -2]), "piecewise_constant: expected each value"),
        (lambda: fnn.piecewise_constant([0.5], [1, 2]), "each boundary to be an integer from 0"),
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


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "MaxPool2d", "Sequential-of-images"])
def test_a_symbolic_batch_size_can_be_exported(name):
    layer, params, x, dy = layer_inputs(LAYERS[name], (5,))
    (batch,) = jax.export.symbolic_shape("batch")

    @jax.jit
    def passes(params, x, dy):
        y, residuals = layer.forward(params, x)
        return y, layer.backward(params, residuals, dy)

    symbolic = [jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in (x, dy)]
    exported = jax.export.export(passes)(params, *symbolic)
    expected = passes(params, x, dy)
    chex.assert_trees_all_close(exported.call(params, x, dy), expected, rtol=1e-5, atol=1e-6)


def test_a_layer_prints_its_name_and_the_layers_inside():
    assert str(fnn.Linear(2, 25)) == "Linear(2, 25)"
    block = fnn.Residual(fnn.Sequential(fnn.Linear(3, 3), fnn.Tanh()))
    model = fnn.Sequential(fnn.repeat(fnn.remat(block), 4), fnn.clip_gradient(fnn.Tanh(), 1.0))
    assert (
        str(model)
        == """\
Sequential(
  0: repeat(remat(Residual(Sequential(
    0: Linear(3, 3),
    1: Tanh()
  ))), n=4),
  1: clip_gradient(Tanh(), max_norm=1.0, axis=None)
)"""
    )


def test_a_layer_knows_its_parts_until_a_function_is_replaced():
    inner = fnn.Linear(2, 3), fnn.Tanh()
    model = fnn.Sequential(*inner)
    assert (model.name, model.layers) == ("Sequential", inner)
    assert model.rebuild(*inner[::-1]).layers == inner[::-1]
    changed = model._replace(backward=model.backward)
    assert (changed.name, changed.layers) == ("Sequential", ())
    assert copy.deepcopy(model).layers == inner
    with pytest.raises(AttributeError, match="cannot be changed"):
        model.name = "other"


def test_a_layer_of_ones_own_is_named_after_its_maker():
    def Scale(name="no name of the layer"):
        def forward(params, x, key=None):
            return x, name

        return fnn.Layer(lambda key: (), forward, None)

    assert Scale().name == "Scale"
    assert fnn.Layer(*Scale(), name="Scale(3)").name == "Scale(3)"


@pytest.mark.parametrize("initializer", ["lecun_normal", "he_normal", "glorot_uniform"])
def test_jaxs_initializers_are_right_as_they_are(initializer):
    draw_weights = getattr(jax.nn.initializers, initializer)()
    W = fnn.Linear(784, 10, weight_init=draw_weights).init(jax.random.key(0))["W"]
    variance = {"lecun_normal": 1 / 784, "he_normal": 2 / 784, "glorot_uniform": 2 / 794}
    assert W.shape == (10, 784)
    assert jnp.var(W) == pytest.approx(variance[initializer], rel=0.05)


def test_a_name_shows_the_options_that_are_not_the_usual_ones():
    for layer, name in [
        (fnn.Conv2d(4, 8, 3, stride=(1, 1), padding=0), "Conv2d(4, 8, (3, 3))"),
        (
            fnn.Conv2d(4, 8, 3, padding=[[1, 1], [0, 1]], groups=2, bias=False),
            "Conv2d(4, 8, (3, 3), padding=(1, (0, 1)), groups=2, bias=False)",
        ),
        (
            fnn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
            "MaxPool2d((3, 3), (2, 2), padding=1, ceil_mode=True)",
        ),
        (fnn.AvgPool1d(2, dilation=2), "AvgPool1d((2,), (2,), dilation=2)"),
        (fnn.GroupNorm(1, 2, num_axes=1), "GroupNorm(1, 2, num_axes=1)"),
        (fnn.RNN(2, 3, activation="relu"), "RNN(2, 3, activation='relu')"),
    ]:
        assert repr(layer) == name
