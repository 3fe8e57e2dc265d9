"""trace shows what passes through a model: exactly, in order, and as a table that fits a screen."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw, draw_integers, make_image_network, make_network

import fnn

key = jax.random.key(0)
mse = fnn.MSELoss()

TINY = fnn.Sequential(fnn.Linear(2, 2), fnn.ReLU(), fnn.Linear(2, 1))
TINY_PARAMS = (
    {"W": jnp.array([[1.0, 0.5], [-1.0, 0.0]]), "b": jnp.array([0.0, 0.5])},
    (),
    {"W": jnp.array([[0.5, 1.0]]), "b": jnp.array([-0.5])},
)
TINY_TABLE = """\
                shape    norm   numbers
0 Linear(2, 2)
  x             (2,)    2.236         1        2
  params['W']   (2, 2)    1.5         1      0.5
                                     -1        0
  params['b']   (2,)      0.5         0      0.5
  y             (2,)    2.062         2     -0.5
  residuals     = x
  dy            (2,)      0.5      -0.5        0
  grads['W']    (2, 2)  1.118      -0.5       -1
                                      0        0
  grads['b']    (2,)      0.5      -0.5        0
  dx            (2,)    0.559      -0.5    -0.25
1 ReLU()
  x             (2,)    2.062         2     -0.5
  y             (2,)        2         2        0
  residuals     = y
  dy            (2,)    1.118      -0.5       -1
  dx            (2,)      0.5      -0.5        0
2 Linear(2, 1)
  x             (2,)        2         2        0
  params['W']   (1, 2)  1.118       0.5        1
  params['b']   (1,)      0.5      -0.5
  y             (1,)      0.5       0.5
  residuals     = x
  dy            (1,)        1        -1
  grads['W']    (1, 2)      2        -2        0
  grads['b']    (1,)        1        -1
  dx            (2,)    1.118      -0.5       -1
loss
  prediction    (1,)      0.5       0.5
  target        (1,)        1         1
  value         ()       0.25      0.25
  d_prediction  (1,)        1        -1
"""


def trace_tiny():
    return fnn.trace(TINY, mse, TINY_PARAMS, jnp.array([1.0, 2.0]), jnp.array([1.0]))


def make_transforms():
    return fnn.Sequential(
        fnn.with_compute_dtype(fnn.Linear(3, 4), jnp.bfloat16),
        fnn.Parallel(fnn.freeze(fnn.Linear(4, 3)), fnn.Tanh()),
        fnn.repeat(fnn.Residual(fnn.Sequential(fnn.Linear(7, 7), fnn.Tanh())), 3),
        fnn.remat(fnn.clip_gradient(fnn.Linear(7, 5), 0.1)),
        fnn.Dropout(0.5),
        fnn.scale_gradient(fnn.Linear(5, 2), 2.0),
        fnn.per_example(fnn.LeakyReLU()),
    )


MODELS = {
    "Sequential": (make_network, (4, 3), (4, 2)),
    "Sequential-nested": (lambda: fnn.Sequential(fnn.Sequential(make_network())), (3,), (2,)),
    "images": (make_image_network, (2, 4, 4, 2), (2, 16)),
    "transforms": (make_transforms, (4, 3), (4, 2)),
    "Residual": (lambda: fnn.Residual(fnn.Linear(3, 3)), (3,), (3,)),
    "one-layer": (lambda: fnn.Linear(3, 2), (4, 3), (4, 2)),
}


def arguments_for(name):
    make, x_shape, y_shape = MODELS[name]
    model = make()
    return model, mse, model.init(key), draw(1, x_shape), draw(2, y_shape), key


@functools.cache
def traced(name):
    return fnn.trace(*arguments_for(name))


def places(trace):
    return [f"{entry.place} {entry.name}".strip() for entry in trace[:-1]]


def test_a_small_network_is_shown_number_by_number():
    assert str(trace_tiny()) + "\n" == TINY_TABLE


def test_the_numbers_in_the_docstring_of_linear_are_those_of_differences():
    model, loss = fnn.Linear(2, 2), fnn.MSELoss("sum")
    with jax.enable_x64(True):
        x, target = jnp.array([1.0, 2.0]), jnp.array([5.0, 11.0])
        inputs = {"W": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([0.5, -0.5]), "x": x}

        def value(inputs):
            params = {"W": inputs["W"], "b": inputs["b"]}
            return loss.forward(model.forward(params, inputs["x"])[0], target)[0].item()

        def slope(name, place, step):
            moved = {**inputs, name: inputs[name].at[place].add(step)}
            return (value(moved) - value(inputs)) / step

        assert abs(slope("W", (0, 1), 1e-3) - 2.004) < 1e-9
        layer, _ = fnn.trace(model, loss, {"W": inputs["W"], "b": inputs["b"]}, x, target)
        given = {**layer.grads, "x": layer.dx}
        for name, array in given.items():
            for place in itertools.product(*map(range, array.shape)):
                assert abs(slope(name, place, 1e-6) - array[place]) < 2e-5


@pytest.mark.parametrize("name", MODELS)
def test_the_passes_are_those_of_loss_and_grads_to_the_bit(name):
    """All of the parameters' gradients are somewhere in the trace."""
    model, loss, *arguments = arguments_for(name)
    value, grads = fnn.loss_and_grads(model, loss)(*arguments)
    *layers, last = traced(name)
    chex.assert_trees_all_equal(last.value, value)
    expected = [leaf.tolist() for leaf in jax.tree.leaves(grads)]
    shown = [leaf.tolist() for layer in layers for leaf in jax.tree.leaves(layer.grads)]
    assert expected
    assert all(leaf in shown for leaf in expected)
    for layer in layers:
        chex.assert_trees_all_equal_shapes_and_dtypes(layer.grads, layer.params)
        assert layer.dx.shape == layer.x.shape


@pytest.mark.parametrize("name", ["Sequential", "Sequential-nested", "images"])
def test_what_a_layer_gives_is_what_the_next_one_gets(name):
    *layers, last = [
        entry for entry in traced(name) if "Residual." not in getattr(entry, "place", "")
    ]
    for before, after in itertools.pairwise(layers):
        assert after.x is before.y
        assert after.dx is before.dy
    assert last.prediction is layers[-1].y
    assert last.d_prediction is layers[-1].dy


def test_entries_come_in_the_order_of_forward_with_observes_places():
    reports = []
    model, loss, *arguments = arguments_for("transforms")
    assert places(traced("transforms")) == [
        "0.with_compute_dtype Linear(3, 4)",
        "0 with_compute_dtype",
        "1.Parallel.0.freeze Linear(4, 3)",
        "1.Parallel.0 freeze",
        "1.Parallel.1 Tanh()",
        "1 Parallel",
        "2 repeat",
        "3 remat",
        "4 Dropout(0.5)",
        "5.scale_gradient Linear(5, 2)",
        "5 scale_gradient",
        "6 per_example",
    ]
    observed = fnn.observe(model, lambda place, *report: reports.append(place))
    fnn.loss_and_grads(observed, loss)(*arguments)
    jax.effects_barrier()
    assert set(places(traced("transforms"))) <= set(reports)


def test_a_transform_and_the_layer_in_it_are_both_shown():
    inner, frozen = traced("transforms")[2:4]
    assert jnp.all(frozen.grads["W"] == 0)
    assert jnp.any(inner.grads["W"] != 0)
    scaled, scaling = traced("transforms")[9:11]
    chex.assert_trees_all_equal(scaling.dx, 2 * scaled.dx)


def test_without_jit_each_copy_in_a_repeat_is_shown():
    model = fnn.repeat(fnn.Residual(fnn.remat(fnn.Linear(3, 3))), 2)
    arguments = model.init(key), draw(1, (4, 3)), draw(2, (4, 3))
    (outer, _) = fnn.trace(model, mse, *arguments)
    with jax.disable_jit():
        trace = fnn.trace(model, mse, *arguments)
    names = ["repeat.Residual.remat Linear(3, 3)", "repeat.Residual remat", "repeat Residual"]
    assert places(trace) == [*(name for name in names for _ in range(2)), "repeat"]
    for copy in range(2):
        copied = jax.tree.map(lambda leaf, copy=copy: leaf[copy], (outer.params, outer.grads))
        chex.assert_trees_all_close((trace[copy].params, trace[copy].grads), copied, rtol=1e-6)


def test_a_layer_of_ones_own_is_shown_by_the_names_of_its_arrays():
    def Scale():
        def forward(params, x, key=None):
            return params[0] * x, {"input": x, "scale": params[0]}

        def backward(params, kept, dy):
            return (jnp.sum(dy * kept["input"]), None), kept["scale"] * dy

        return fnn.Layer(lambda key: (jnp.array(3.0), None), forward, backward)

    layer, _ = fnn.trace(Scale(), mse, (3.0, None), [1.0, 2.0], [3.0, 5.0])
    names = [line.split()[:3] for line in str(layer).splitlines()]
    assert names[1] == ["Scale"]
    assert ["params[0]", "()", "3"] in names
    assert ["residuals['input']", "=", "x"] in names
    assert ["residuals['scale']", "()", "3"] in names
    assert ["grads[0]", "()", "2"] in names


def test_indices_labels_and_keys_are_shown():
    model = fnn.Sequential(fnn.Embedding(5, 3), fnn.remat(fnn.Dropout(0.5)))
    labels = draw_integers(1, (2,), 3)
    table = str(
        fnn.trace(model, fnn.CrossEntropyLoss(), model.init(key), labels, labels, key)
    ).splitlines()
    assert sum(line.split()[1:3] == ["(2,)", "int32"] for line in table) == 3  # x, dx, target
    assert any(line.split()[-1] == "key<fry>" for line in table)


def test_an_image_of_one_channel_is_shown_as_a_matrix():
    """The gradient of each weight is the sum of dy times the pixels that it has met."""
    model = fnn.Sequential(fnn.Conv2d(1, 1, 2, bias=False), fnn.Flatten())
    image, dy = jnp.arange(9.0).reshape(1, 3, 3, 1), jnp.array([[0.0, 0.0, 0.0, 2.0]])
    loss = fnn.Loss(lambda y, target: (jnp.sum(y * target), target), lambda target: target)
    table = str(fnn.trace(model, loss, ({"W": jnp.ones((2, 2, 1, 1))}, ()), image, dy))
    lines = [line.split() for line in table.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[0] == "grads['W']")
    assert [line[-2:] for line in lines[start : start + 2]] == [["8", "10"], ["14", "16"]]


def test_a_table_fits_80_columns_whatever_it_shows():
    deep = fnn.freeze(fnn.Linear(3, 3))
    for _ in range(15):
        deep = fnn.Sequential(fnn.Sequential(deep))
    model = fnn.per_example(fnn.Parallel(deep, deep, fnn.Residual(deep)))
    numbers = -1.23456789e-30 * draw(1, (1, 2, 1, 1, 1, 1, 3))
    target = jnp.concatenate([numbers] * 3, axis=-1)
    for trace in (fnn.trace(model, mse, model.init(key), numbers, target), traced("images")):
        lines = str(trace).splitlines()
        assert max(map(len, lines)) <= 80
        assert not any(line.endswith(" ") for line in lines)


def test_arrays_without_values_are_refused():
    def run(x):
        return fnn.trace(TINY, mse, TINY_PARAMS, x, jnp.array([1.0]))[-1].value

    message = "^trace: expected arrays with values"
    with pytest.raises(ValueError, match=message):
        jax.jit(run)(jnp.ones(2))
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda: run(jnp.ones(2)))()
    with pytest.raises(ValueError, match=message):
        jax.vmap(run)(jnp.ones((3, 2)))


def test_what_is_no_model_loss_or_array_is_refused():
    x, target = jnp.array([1.0, 2.0]), jnp.array([1.0])
    with pytest.raises(ValueError, match="trace: expected a Layer"):
        fnn.trace(tuple(TINY), mse, TINY_PARAMS, x, target)
    with pytest.raises(ValueError, match="trace: expected a Loss"):
        fnn.trace(TINY, TINY, TINY_PARAMS, x, target)
    with pytest.raises(ValueError, match="trace: expected x to be an array, got 'text'"):
        fnn.trace(TINY, mse, TINY_PARAMS, "text", target)
    with pytest.raises(ValueError, match=r"Linear\(2, 2\): expected x of shape") as error:
        fnn.trace(TINY, mse, TINY_PARAMS, jnp.ones(3), target)
    assert error.value.__notes__ == ["in layer 0 of Sequential, forward"]
