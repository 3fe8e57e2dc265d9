import chex
import jax
import jax.numpy as jnp
import pytest
from cases import cast, draw

import fnn

linear = fnn.Linear(2, 3)
params = {"W": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "b": jnp.array([0.1, 0.2, 0.3])}


def test_values_by_hand():
    x, dy = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]])
    y, residuals = linear.forward(params, x)
    assert jnp.allclose(y, jnp.array([[1.1, 3.2, 5.3], [4.1, 8.2, 12.3]]))
    grads, dx = linear.backward(params, residuals, dy)
    assert grads["W"].tolist() == [[1, 0], [0, 2], [0, -2]]
    assert grads["b"].tolist() == [1, 1, -1]
    assert dx.tolist() == [[1, 2], [-2, -2]]


def test_parameters_have_the_documented_shapes_and_dtypes():
    shapes = {"W": (3, 2), "b": (3,)}
    assert jax.tree.map(jnp.shape, linear.init(jax.random.key(0))) == shapes
    assert set(fnn.Linear(2, 3, bias=False).init(jax.random.key(0))) == {"W"}
    low = fnn.Linear(2, 3, dtype=jnp.bfloat16).init(jax.random.key(0))
    assert low["W"].dtype == low["b"].dtype == jnp.bfloat16


def test_initializers_are_the_ones_given():
    layer = fnn.Linear(2, 3, weight_init=fnn.zeros, bias_init=jax.nn.initializers.ones)
    drawn = layer.init(jax.random.key(0))
    assert jnp.all(drawn["W"] == 0)
    assert jnp.all(drawn["b"] == 1)


def test_weight_and_bias_are_drawn_independently():
    normal = jax.nn.initializers.normal()
    layer = fnn.Linear(1, 5, weight_init=normal, bias_init=normal)
    drawn = layer.init(jax.random.key(0))
    assert jnp.all(drawn["W"][:, 0] != drawn["b"])


def test_wrong_residuals_are_refused():
    with pytest.raises(ValueError, match=r"expected residuals of shape \(..., 2\), got \(4, 5\)"):
        linear.backward(params, jnp.ones((4, 5)), jnp.ones((4, 3)))


def test_residuals_are_x_alone():
    x = jnp.ones((4, 2))
    assert linear.forward(params, x)[1] is x


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_messages_say_what_was_expected_and_what_came(wrap):
    forward = wrap(linear.forward)
    with pytest.raises(
        ValueError, match=r"^Linear\(2, 3\): expected x of shape \(\.\.\., 2\), got \(10, 3\)(\n|$)"
    ):
        forward(params, jnp.ones((10, 3)))
    with pytest.raises(ValueError, match=r"expected x of shape \(..., 2\), got \(\)"):
        forward(params, jnp.ones(()))
    with pytest.raises(ValueError, match=r"expected dy of shape \(10, 3\), got \(10, 2\)"):
        wrap(linear.backward)(params, jnp.ones((10, 2)), jnp.ones((10, 2)))
    with pytest.raises(ValueError, match=r"params of shapes .*'b': \(3,\).* got .*'b': \(2,\)"):
        forward({**params, "b": jnp.ones(2)}, jnp.ones((10, 2)))


def test_16_bit_sums_accumulate_in_float32():
    """A sum of 4096 ones stops at 256 when it accumulates in bfloat16."""
    layer = fnn.Linear(1, 1, dtype=jnp.bfloat16)
    ones = jnp.ones((4096, 1), jnp.bfloat16)
    grads, _ = layer.backward(layer.init(jax.random.key(0)), ones, ones)
    assert grads["W"].item() == grads["b"].item() == 4096
    wide = fnn.Linear(4096, 1, weight_init=jax.nn.initializers.ones, dtype=jnp.bfloat16)
    y, _ = wide.forward(wide.init(jax.random.key(0)), ones[:, 0])
    assert y.item() == 4096
    tall = fnn.Linear(1, 4096, weight_init=jax.nn.initializers.ones, dtype=jnp.bfloat16)
    _, dx = tall.backward(tall.init(jax.random.key(0)), ones[0], ones[:, 0])
    assert dx.item() == 4096


def test_embedding_looks_up_rows_and_adds_up_their_gradients():
    layer, table = fnn.Embedding(3, 2), {"W": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
    y, residuals = layer.forward(table, jnp.array([2, 0, 2]))
    assert y.tolist() == [[5, 6], [1, 2], [5, 6]]
    grads, dx = layer.backward(table, residuals, jnp.array([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]]))
    assert grads["W"].tolist() == [[3, 4], [0, 0], [11, 22]]
    assert dx.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8, jnp.uint8])
def test_an_index_without_a_row_gives_nan_and_no_gradient(dtype):
    layer, table = fnn.Embedding(3, 2), {"W": jnp.ones((3, 2))}
    x = jnp.array([0, 3, 100, jnp.iinfo(dtype).max, jnp.iinfo(dtype).min], dtype)
    y, residuals = layer.forward(table, x)
    is_row = jnp.array([True, False, False, False, x[-1] == 0])
    assert jnp.all(jnp.isnan(y).all(axis=-1) == ~is_row)
    grads, _ = layer.backward(table, residuals, jnp.ones((5, 2)))
    assert grads["W"].tolist() == [[int(is_row.sum())] * 2, [0, 0], [0, 0]]


def test_narrow_indices_reach_the_rows_of_a_long_table():
    layer, x = fnn.Embedding(40000, 1), jnp.array([5, 32767], jnp.int16)
    y, _ = layer.forward({"W": jnp.arange(40000.0)[:, None]}, x)
    assert y.ravel().tolist() == [5, 32767]


@pytest.mark.parametrize("dtype", [jnp.int64, jnp.uint64])
def test_an_index_of_64_bits_is_not_cut_to_another_rows(dtype):
    layer, table = fnn.Embedding(3, 2), {"W": jnp.ones((3, 2))}
    with jax.enable_x64(True):
        x = jnp.array([1, 2**32 + 1, 2**63 - 1], dtype)
        y, residuals = layer.forward(table, x)
        assert jnp.isnan(y).all(axis=-1).tolist() == [False, True, True]
        grads, dx = layer.backward(table, residuals, jnp.ones((3, 2), jnp.float32))
    assert grads["W"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert dx.dtype == dtype


def test_embeddings_of_16_bits_accumulate_in_float32():
    layer = fnn.Embedding(1, 1, dtype=jnp.bfloat16)
    grads, _ = layer.backward(
        layer.init(jax.random.key(0)), jnp.zeros(4096, int), jnp.ones((4096, 1), jnp.bfloat16)
    )
    assert grads["W"].item() == 4096


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(4,), (4, 5), (4, 2, 3), ()], ids=str)
def test_squared_norms_are_those_of_each_examples_gradient(leading, bias):
    layer = fnn.Linear(3, 2, bias=bias)
    norms = layer._replace(backward=fnn.linear_squared_norms)
    with jax.enable_x64(True):
        p = cast(layer.init(jax.random.key(0)), jnp.float64)
        x, dy = draw(1, (*leading, 3), jnp.float64), draw(2, (*leading, 2), jnp.float64)

        def squares_by_jax(x, dy):
            grads = jax.grad(lambda p: jnp.vdot(layer.forward(p, x)[0], dy))(p)
            return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), grads)

        by_jax = jax.jit(jax.vmap(squares_by_jax) if leading else squares_by_jax)
        squares, dx = norms.backward(p, norms.forward(p, x)[1], dy)
        chex.assert_trees_all_close(squares, by_jax(x, dy), rtol=1e-10)
        chex.assert_trees_all_equal(dx, layer.backward(p, x, dy)[1])


def test_squared_norms_are_never_negative_and_in_float32_for_16_bit():
    """Two positions whose gradients cancel but for rounding."""
    x, dy = draw(1, (256, 1, 2)), draw(2, (256, 1, 3))
    x, dy = jnp.concatenate([x, 1.0001 * x], axis=1), jnp.concatenate([dy, -dy], axis=1)
    squares, _ = fnn.linear_squared_norms(params, x, dy)
    assert all(jnp.all(leaf >= 0) for leaf in squares.values())
    low = cast((params, x, dy), jnp.bfloat16)
    squares, dx = jax.eval_shape(fnn.linear_squared_norms, *low)
    assert (squares["W"].dtype, squares["b"].dtype, dx.dtype) == ("float32", "float32", "bfloat16")


def test_squared_norms_refuse_what_has_another_shape():
    with pytest.raises(
        ValueError, match=r"linear_squared_norms: expected dy of shape \(4, 3\), got"
    ):
        fnn.linear_squared_norms(params, jnp.ones((4, 2)), jnp.ones((4, 2)))
    with pytest.raises(
        ValueError, match=r"linear_squared_norms: expected residuals of shape \(..., 2"
    ):
        fnn.linear_squared_norms(params, jnp.ones((4, 3)), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="linear_squared_norms: expected params of a Linear, got"):
        fnn.linear_squared_norms({"scale": jnp.ones(2)}, jnp.ones((4, 2)), jnp.ones((4, 3)))
