"""Attention and recurrence: their definitions, their memory, and the products they compute."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, VARIANTS, cast, draw, layer_inputs

import fnn
from fnn.layers.attention import QUERIES_IN_BLOCK

KEY = jax.random.key(0)


def forward(layer, x):
    return layer.forward(layer.init(KEY), x)[0]


def by_jax(x, num_heads, causal):
    *leading, time, width = x.shape
    parts = jnp.split(x, 3, axis=-1)
    q, k, v = (part.reshape(-1, time, num_heads, width // 3 // num_heads) for part in parts)
    y = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    return y.reshape(*leading, time, width // 3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("time", [1, 7, QUERIES_IN_BLOCK, QUERIES_IN_BLOCK + 1, 300])
def test_attention_is_that_of_jax_for_every_number_of_blocks(time, causal):
    layer, x, dy = fnn.Attention(2, causal=causal), draw(1, (2, time, 12)), draw(2, (2, time, 4))

    @jax.jit
    def both(x, dy):
        y, residuals = layer.forward((), x)
        expected, vjp = jax.vjp(functools.partial(by_jax, num_heads=2, causal=causal), x)
        return (y, layer.backward((), residuals, dy)[1]), (expected, *vjp(dy))

    chex.assert_trees_all_close(*both(x, dy), rtol=1e-4, atol=1e-5)


def test_causal_attention_does_not_look_ahead():
    x = draw(1, (6, 12))
    layer = fnn.Attention(2, causal=True, rotary_base=100)
    changed = forward(layer, x.at[4:].set(7.0))
    assert jnp.all(forward(layer, x)[:4] == changed[:4])
    assert jnp.any(forward(layer, x)[4:] != changed[4:])


def test_rotary_attention_depends_on_distances_alone():
    """The same q, k and v at every position: the scores then depend on t - s."""
    q_and_k = jnp.tile(draw(1, (1, 16)), (5, 1))
    x = jnp.concatenate([q_and_k, jnp.eye(5, 8)], axis=-1)  # v[s] is the unit vector s
    p = forward(fnn.Attention(1, rotary_base=10.0), x)[:, :5]
    for offset in (-1, 1, 2):
        ratios = jnp.diagonal(p, offset) / jnp.diagonal(p)[: 5 - abs(offset)]
        if offset < 0:
            ratios = jnp.diagonal(p, offset) / jnp.diagonal(p)[abs(offset) :]
        assert jnp.allclose(ratios, ratios[0], rtol=1e-4)
        assert not jnp.allclose(ratios[0], 1, rtol=1e-3)


def test_rotary_angles_are_those_of_the_definition():
    """One query at position 2, pairs (x[0], x[1]) and (x[2], x[3]), base 100."""
    q, k = draw(1, (3, 4)), draw(2, (3, 4))
    angles = jnp.arange(3.0).reshape(3, 1) * jnp.array([[1.0, 0.1]])

    def turn(x):
        turned = jax.lax.complex(x[:, ::2], x[:, 1::2])
        turned = turned * jax.lax.complex(jnp.cos(angles), jnp.sin(angles))
        return jnp.stack([turned.real, turned.imag], axis=-1).reshape(3, 4)

    plain = by_jax(jnp.concatenate([turn(q), turn(k), k], axis=-1), 1, False)
    x = jnp.concatenate([q, k, k], axis=-1)
    assert jnp.allclose(forward(fnn.Attention(1, rotary_base=100), x), plain, atol=1e-5)


def temporary_bytes(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def passes(function, x, dy):
    y, vjp = jax.vjp(function, x)
    return y, vjp(dy)


@pytest.mark.usefixtures("on_the_cpu")
def test_attention_over_2048_positions_has_a_tenth_of_the_memory():
    layer = fnn.Attention(4, causal=True)
    x, dy = (jax.ShapeDtypeStruct((1, 2048, n), jnp.float32) for n in (384, 128))

    def ours(x, dy):
        y, residuals = layer.forward((), x)
        return y, layer.backward((), residuals, dy)

    theirs = functools.partial(passes, functools.partial(by_jax, num_heads=4, causal=True))
    assert temporary_bytes(ours, x, dy) < temporary_bytes(theirs, x, dy) / 10


def test_attention_keeps_x_alone():
    x = draw(1, (3, 500, 48))
    assert fnn.Attention(4).forward((), x)[1] is x


def test_attention_is_exact_for_large_scores():
    """The weights of a query are then 0, or equal where its largest scores are."""
    whole = draw(1, (2, 8, 12)).round()  # so that the scores are exact in float32
    layer, x, dy = fnn.Attention(2), 1e3 * whole, draw(2, (2, 8, 4))

    def passes(x, dy):
        y, residuals = layer.forward((), x)
        return y, layer.backward((), residuals, dy)[1]

    actual = jax.device_get(jax.jit(passes)(x, dy))
    with jax.enable_x64(True):
        exact = jax.device_get(jax.jit(passes)(*cast((x, dy), jnp.float64)))
    for ours, wide in zip(actual, exact, strict=True):
        assert abs(ours - wide).max() < 1e-6 * abs(wide).max()


def count_products(jaxpr, times=1):
    """Multiplications of the matrix products in a jaxpr; those of a loop for each of its turns."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
            count += times * math.prod(equation.outvars[0].aval.shape) * math.prod(sizes)
        turns = times * equation.params.get("length", 1)
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            count += count_products(inner, turns) if hasattr(inner, "eqns") else 0
    return count


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "LSTM-bidirectional"])
def test_recurrent_passes_cost_no_more_than_jax_vjps(name):
    """In the multiplications of their products, and in what is kept and held."""
    layer, params, x, dy = layer_inputs({**LAYERS, **VARIANTS}[name], (64,))

    def ours(params, x, dy):
        y, residuals = layer.forward(params, x)
        return y, layer.backward(params, residuals, dy)

    def theirs(params, x, dy):
        y, vjp = jax.vjp(lambda *args: layer.forward(*args)[0], params, x)
        return y, vjp(dy)

    counts = [
        count_products(jax.make_jaxpr(function)(params, x, dy).jaxpr) for function in (ours, theirs)
    ]
    assert 0 < counts[0] <= counts[1]
    assert temporary_bytes(ours, params, x, dy) <= temporary_bytes(theirs, params, x, dy)
    kept = jax.tree.leaves(jax.eval_shape(layer.forward, params, x)[1])
    saved = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(layer.forward, *a)[1], params, x))
    assert sum(a.size for a in kept) < sum(a.size for a in saved)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_prefix_gives_the_same_outputs(kind):
    layer, x = getattr(fnn, kind)(3, 4), draw(1, (2, 6, 3))
    assert jnp.allclose(forward(layer, x)[:, :4], forward(layer, x[:, :4]), atol=1e-6)
    reversed_layer = fnn.reverse_time(layer)
    expected = forward(layer, x[:, ::-1])[:, ::-1]
    assert jnp.allclose(forward(reversed_layer, x), expected, atol=1e-6)


def test_sequences_train_under_transforms_and_report_their_parts():
    block = fnn.Residual(fnn.Sequential(fnn.LayerNorm(4), fnn.MultiHeadAttention(4, 2)))
    model = fnn.Sequential(
        fnn.Embedding(5, 4),
        fnn.PositionalEmbedding(6, 4),
        fnn.repeat(fnn.remat(block), 2),
        fnn.with_compute_dtype(fnn.reverse_time(fnn.GRU(4, 4)), jnp.bfloat16),
        fnn.LastStep(),
    )
    x, params = jnp.array([[0, 1, 2, 3, 4, 0]] * 3), model.init(KEY)
    y, residuals = model.forward(params, x)
    assert y.shape == (3, 4)
    grads, _ = fnn.per_example(model).backward(
        params, fnn.per_example(model).forward(params, x)[1], jnp.ones((3, 4))
    )
    whole, _ = model.backward(params, residuals, jnp.ones((3, 4)))
    summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), grads)
    chex.assert_trees_all_close(summed, whole, rtol=0.02, atol=0.02)
    assert "Attention(2)" in repr(model)
    assert "reverse_time(GRU(4, 4))" in fnn.summary(model, (3, 6), jnp.int32)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: fnn.Attention(2), (4, 9), r"Attention\(2\): expected x of shape \(..., time, 3"),
        (lambda: fnn.Attention(2), (12,), r"Attention\(2\): expected x of shape \(..., time, 3"),
        (lambda: fnn.Attention(2, rotary_base=10), (4, 6), "with a dim that 4 divides, got"),
        (lambda: fnn.Attention(0), None, "Attention: expected num_heads to be an integer >= 1"),
        (lambda: fnn.Attention(1, rotary_base=0), None, "Attention: expected rotary_base to be a"),
        (lambda: fnn.MultiHeadAttention(6, 4), (3, 6), "with a dim that 4 divides"),
        (lambda: fnn.PositionalEmbedding(3, 2), (4, 2), "expected x of at most 3 positions, got"),
        (lambda: fnn.LSTM(3, 2), (3,), r"LSTM\(3, 2\): expected x of shape \(..., time, 3\)"),
        (lambda: fnn.RNN(3, 2, activation="sin"), None, "expected activation 'tanh' or 'relu'"),
        (lambda: fnn.GRU(3, 0), None, "GRU: expected dim_hidden to be an integer >= 1, got 0"),
        (fnn.LastStep, (0, 3), r"LastStep\(\): expected x with a position, got \(0, 3\)"),
        (lambda: fnn.reverse_time(fnn.Tanh()), (3,), r"reverse_time: expected x of shape"),
    ],
)
def test_messages_say_what_a_sequence_must_be(make, shape, message):
    with pytest.raises(ValueError, match=message):
        forward(make(), jnp.ones(shape))


def test_a_sequence_of_no_positions_passes_through():
    for layer, width in ((fnn.LSTM(3, 2), 3), (fnn.Attention(1), 6)):
        x, params = jnp.ones((2, 0, width)), layer.init(KEY)
        y, residuals = layer.forward(params, x)
        grads, dx = layer.backward(params, residuals, y)
        assert y.shape == (2, 0, 2)
        assert dx.shape == x.shape
        assert not any(leaf.any() for leaf in jax.tree.leaves(grads))
