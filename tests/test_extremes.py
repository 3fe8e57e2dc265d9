"""NaN, infinities, bad indices and huge numbers: eager, jitted and vmapped programs agree."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, LOSSES, cast, draw, is_floating, layer_inputs, numpy_array

import fnn

NAN, INF = float("nan"), float("inf")
EXTREMES = [NAN, INF, -INF, 1e4, -1e4]
# Those whose arithmetic in 16 bits is not simply that of more bits.
IN_16_BITS = ["Linear", "Conv2d", "AvgPool2d", "MaxPool2d", "LayerNorm", "RMSNorm", "ELU", "GELU",
              "GELU-tanh", "SiLU", "Softmax", "LogSoftmax"]  # fmt: skip


def kinds(tree):
    """Each number's kind: NaN is 2, the infinities are 1 and -1, and finite numbers 0."""
    arrays = [array for array in jax.device_get(jax.tree.leaves(tree)) if is_floating(array)]
    return [(2 * (a != a) + (a == INF) * 1 - (a == -INF) * 1).tolist() for a in arrays]


def extreme_examples(shape, dtype):
    """For each extreme number an example with it in the middle of small numbers."""
    size = math.prod(shape)
    rows = [[0.25 * (i % 3) - 0.25 for i in range(size)] for _ in EXTREMES]
    for row, value in zip(rows, EXTREMES, strict=True):
        row[size // 2] = value
    x = numpy_array(rows, dtype)
    return jax.device_put(x.reshape(-1, *shape))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float64") for name in LAYERS] + [(name, "float16") for name in IN_16_BITS],
)
def test_a_layers_nans_do_not_depend_on_compilation(name, dtype):
    with jax.enable_x64(True):
        case = LAYERS[name]
        layer, params, x, dy = layer_inputs(case, (5,), dtype)
        if case.num_indices:
            bad = [0, -1, case.num_indices, 2**31 - 1, -(2**31)]
            x = jax.device_put(numpy_array([[index] * case.x[0] for index in bad], "int32"))
        else:
            x = extreme_examples(case.x, dtype)
            dy = jax.device_get(dy).copy()
            dy[3] = INF
            dy = jax.device_put(dy)

        def passes(params, x, dy):
            y, residuals = layer.forward(params, x)
            return y, layer.backward(params, residuals, dy)

        @jax.jit
        def compiled(params, x, dy):
            return passes(params, x, dy), jax.vmap(passes, (None, 0, 0))(params, x, dy)

        y, (grads, dx) = passes(params, x, dy)
        whole, (y_each, (_, dx_each)) = compiled(params, x, dy)
        assert kinds(whole) == kinds((y, (grads, dx)))
        assert kinds((y_each, dx_each)) == kinds((y, dx))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_losses_nans_do_not_depend_on_compilation(name, dtype):
    loss = LOSSES[name].make("mean")
    prediction = extreme_examples((3,), dtype)
    targets = [LOSSES[name].target(1, prediction.shape, dtype)]
    if targets[0].dtype == jnp.int32:
        targets.append(jax.device_put(numpy_array([0, 3, -1, 2**31 - 1, -(2**31)], "int32")))

    def passes(prediction, target):
        value, residuals = loss.forward(prediction, target)
        return value, loss.backward(residuals)

    for target in targets:
        expected = passes(prediction, target)
        assert kinds(jax.jit(passes)(prediction, target)) == kinds(expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("label", [3, -1, 2**31 - 1])
def test_a_label_that_is_no_class_is_nan_in_every_program(label, dtype):
    loss, logits = fnn.CrossEntropyLoss(), draw(0, (4, 3), dtype)
    labels = jax.device_put(numpy_array([0, label, 2, 1], "int32"))

    def passes(logits, labels):
        value, residuals = loss.forward(logits, labels)
        return value, loss.backward(residuals)

    for wrap in (lambda f: f, jax.jit, lambda f: jax.jit(jax.vmap(f))):
        value, d_logits = jax.device_get(wrap(passes)(logits, labels))
        assert (value != value).any()
        assert (d_logits != d_logits).all(axis=-1).tolist() == [False, True, False, False]


def test_labels_from_1_to_n_do_not_train_unnoticed():
    model, loss, optimizer = fnn.Linear(2, 3), fnn.CrossEntropyLoss(), fnn.sgd(0.1)
    x, labels = jnp.ones((6, 2)), jnp.array([1, 2, 3, 1, 2, 3])
    state = fnn.init_train_state(model, optimizer, jax.random.key(0))
    _, value = fnn.make_train_step(model, loss, optimizer)(state, x, labels)
    _, values = fnn.make_train_epoch(model, loss, optimizer, 3)(state, x, labels, jax.random.key(0))
    assert jnp.isnan(value)
    assert jnp.isnan(values).any()


@pytest.mark.parametrize("optimizer", [fnn.sgd(0.1, 0.9), fnn.adam(0.1)], ids=["sgd", "adam"])
def test_an_optimizers_nans_do_not_depend_on_compilation(optimizer):
    params, grads = jnp.ones(8), jnp.array([NAN, INF, -INF, 0.0, 1e20, -1e30, 1e-30, 1.0])
    clipped = fnn.clip_by_global_norm(optimizer, 1.0)
    for update in (optimizer.update, clipped.update):
        state = optimizer.init(params)
        with jax.disable_jit():
            expected = update(grads, state, params)
        assert kinds(jax.jit(update)(grads, state, params)) == kinds(expected)


def test_nan_scores_are_wrong_answers_in_every_program():
    scores = jnp.array([[NAN, 0.0], [1.0, NAN], [0.0, 1.0], [INF, 0.0]])
    labels = jnp.array([0, 0, 1, 0])
    for wrap in (lambda f: f, jax.jit):
        assert wrap(fnn.accuracy)(scores, labels) == 0.5


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_64_bit_indices_of_numpy_are_not_cut(dtype):
    beyond = numpy_array([1, 2**32 + 1, 2**62], dtype)
    y, _ = fnn.Embedding(3, 2).forward({"W": jnp.ones((3, 2))}, beyond)
    assert jnp.isnan(y).all(axis=-1).tolist() == [False, True, True]
    scores = jnp.eye(3)[jnp.array([1, 1, 1])]
    assert fnn.accuracy(scores, beyond) == pytest.approx(1 / 3)
    value, d_logits = fnn.CrossEntropyLoss().forward(scores, beyond)
    assert jnp.isnan(value)
    assert jnp.isnan(d_logits).all(axis=-1).tolist() == [False, True, True]


def test_a_list_beyond_32_bits_is_refused_as_lists_are():
    layer = fnn.Embedding(3, 2)
    with pytest.raises(
        ValueError, match=r"Embedding\(3, 2\): expected x to be an array, got \[1, 42"
    ):
        layer.forward({"W": jnp.ones((3, 2))}, [1, 2**32])


@pytest.mark.parametrize("x", ["big-endian", "objects"])
def test_an_array_that_jax_does_not_have_is_refused_by_its_dtype(x):
    array = jax.device_get(jnp.zeros((4, 3)))
    array = (
        array.astype(array.dtype.newbyteorder(">")) if x == "big-endian" else array.astype(object)
    )
    with pytest.raises(ValueError, match=r"expected x to be an array, got ndarray of dtype"):
        fnn.Linear(3, 2).forward(fnn.Linear(3, 2).init(jax.random.key(0)), array)


@pytest.mark.parametrize("make", [fnn.LayerNorm, fnn.RMSNorm])
@pytest.mark.parametrize("scale", [1e20, 1e35, 1e-20, 1e-30])
def test_norms_of_huge_and_tiny_numbers_are_those_of_float64(make, scale):
    """Without overflow or underflow of the squares, also for eps = 0."""
    for eps in (1e-5, 0.0):
        layer = make(4, eps)
        x, dy = scale * jnp.array([[1.0, 2.0, -1.5, 0.5]]), jnp.array([[1.0, -1.0, 0.5, 2.0]])
        params = layer.init(jax.random.key(0))
        y, residuals = layer.forward(params, x)
        actual = y, layer.backward(params, residuals, dy)[0]
        with jax.enable_x64(True):
            wide = cast((params, x, dy), jnp.float64)
            y, residuals = layer.forward(*wide[:2])
            expected = y, layer.backward(wide[0], residuals, wide[2])[0]
            for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
                assert jnp.allclose(a.astype(jnp.float64), b, rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [fnn.LayerNorm, fnn.RMSNorm])
@pytest.mark.parametrize(
    ("scale", "eps"), [(1.0, 1e-5), (1e13, 1e-5), (1e20, 1e-5), (1e-15, 1e-30), (1e-20, 0.0)]
)
def test_a_norms_passes_and_their_derivatives_are_those_of_float64(make, scale, eps):
    layer = make(4, eps)
    params, dy = layer.init(jax.random.key(0)), jnp.array([1.0, -1.0, 0.5, 2.0])
    x = scale * jnp.array([1.0, 2.0, -1.5, 0.5])

    def second_order(params, x, dy):
        def passes(x):
            y, residuals = layer.forward(params, x)
            return y, layer.backward(params, residuals, dy)[1]

        return jax.tree.leaves(jax.jvp(passes, (x,), (x[::-1],)))

    actual = second_order(params, x, dy)
    with jax.enable_x64(True):
        expected = second_order(*cast((params, x, dy), jnp.float64))
        for a, b in zip(actual, expected, strict=True):
            assert jnp.allclose(a.astype(jnp.float64), b, rtol=1e-5, atol=1e-5 * abs(b).max())


@pytest.mark.parametrize("value", [1e-20, 1.0, 2.0**60, 2.0**100])
@pytest.mark.parametrize("eps", [1e-5, 1e-30])
def test_layer_norm_of_equal_numbers_divides_by_the_root_of_eps(value, eps):
    layer, x, dy = fnn.LayerNorm(4, eps), jnp.full(4, value), jnp.array([1.0, -1.0, 0.5, 1.5])
    params = layer.init(jax.random.key(0))
    y, residuals = layer.forward(params, x)
    _, dx = layer.backward(params, residuals, dy)
    assert jnp.all(y == 0)
    assert jnp.allclose(dx, (dy - 0.5) / math.sqrt(eps), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("eps", "x"), [(1e28, 1e20), (1e38, 1e18), (1e38, 1e19)])
def test_a_huge_eps_is_added_to_huge_squares(eps, x):
    layer = fnn.RMSNorm(4, eps)
    y, _ = layer.forward(layer.init(jax.random.key(0)), jnp.full(4, x))
    assert jnp.allclose(y, x / math.sqrt(x**2 + eps), rtol=1e-5)


def test_layer_norm_of_the_largest_numbers_is_that_of_small_ones():
    layer = fnn.LayerNorm(64)
    params, share = layer.init(jax.random.key(0)), jnp.linspace(0.5, 1, 64)
    y, _ = layer.forward(params, share * jnp.finfo(jnp.float32).max)
    expected, _ = layer.forward(params, share * 2.0**30)
    assert jnp.allclose(y, expected, atol=1e-5)


def test_one_huge_gradient_does_not_stop_adam_for_ever():
    """torch.optim.Adam gives the same: 0.4031 after fifty more steps."""
    optimizer, p = fnn.adam(0.1), jnp.array(1.0)
    state = optimizer.init(p)
    update = jax.jit(optimizer.update)
    for grad in (1e20, *[0.5] * 50):
        p, state = update(jnp.array(grad), state, p)
    assert jnp.isfinite(state.square)
    assert p == pytest.approx(0.4031, abs=1e-3)


def test_float16_mse_is_derived_from_differences_beyond_its_range():
    prediction = jnp.zeros(1000, jnp.float16).at[0].set(40000)
    target = jnp.zeros(1000, jnp.float16).at[0].set(-40000)
    _, d_prediction = fnn.MSELoss().forward(prediction, target)
    assert d_prediction[0] == 160


def test_the_step_counter_stays_at_its_largest():
    step = jnp.array(2**31 - 2, jnp.int32)
    for optimizer in (fnn.sgd(0.1), fnn.adam(0.1)):
        p = jnp.array(1.0)
        state = optimizer.init(p)._replace(step=step)
        for _ in range(3):
            p, state = optimizer.update(jnp.array(0.1), state, p)
        assert state.step == 2**31 - 1
        assert -1 < p < 1


def test_decay_rates_near_1_keep_their_digits():
    rate = fnn.exponential_decay(1.0, 1, 0.999999)(jnp.array(10**7))
    assert rate == pytest.approx(0.999999 ** (10**7), rel=1e-5)
    for step, expected in ((0, 1), (1, 0)):
        with jax.debug_nans(True):
            assert fnn.exponential_decay(1.0, 1, 0.0)(jnp.array(step)) == expected


def test_adam_can_be_differentiated_where_a_gradient_is_0():
    def last(rate):
        optimizer = fnn.adam(rate)
        p = jnp.array([1.0, 2.0])
        state = optimizer.init(p)
        for _ in range(3):
            p, state = optimizer.update(p * jnp.array([1.0, 0.0]), state, p)
        return jnp.sum(p)

    with jax.enable_x64(True):
        slope, step = jax.jvp(last, (0.1,), (1.0,))[1], 1e-6
        difference = (last(0.1 + step) - last(0.1 - step)) / (2 * step)
        assert slope.item() == pytest.approx(difference.item(), rel=1e-6)


def test_what_was_placed_does_not_change_with_the_callers_array():
    """JAX keeps a view of an aligned NumPy array where it can."""
    mesh = fnn.data_parallel_mesh(jax.devices("cpu")[:1])
    for place in (functools.partial(fnn.shard_batch, mesh), functools.partial(fnn.replicate, mesh)):
        array = jax.device_get(jnp.zeros((1024, 64))).copy()
        placed = place(array)
        array[:] = 1
        assert not jnp.any(placed)


def test_64_bit_indices_are_not_cut_inside_transforms():
    beyond, embedding = numpy_array([1, 2**32 + 1], "int64"), fnn.Embedding(3, 2)
    params = embedding.init(jax.random.key(0))
    for layer in (fnn.remat(embedding), fnn.with_compute_dtype(embedding, jnp.float32)):
        y, residuals = layer.forward(params, beyond)
        grads, _ = layer.backward(params, residuals, jnp.ones((2, 2)))
        assert jnp.isnan(y).all(axis=-1).tolist() == [False, True]
        assert grads["W"][:, 0].tolist() == [0, 1, 0]
    y = fnn.predict(embedding, params, beyond, batch_size=1)
    assert jnp.isnan(y).all(axis=-1).tolist() == [False, True]
    evaluate = fnn.loss_and_grads(fnn.Identity(), fnn.CrossEntropyLoss())
    value, _ = fnn.accumulate_gradients(evaluate, 2)((), jnp.ones((2, 3)), beyond)
    assert jnp.isnan(value)


def test_schedules_do_not_overflow_where_the_rate_does_not():
    assert fnn.cosine_decay(1.0, 2**24 + 1, 2**24)(2**24) == 1
    assert fnn.exponential_decay(0.0, 1, 10.0)(1000) == 0
    assert fnn.exponential_decay(1e-30, 1, 10.0)(50) == pytest.approx(1e20, rel=1e-4)


def test_a_mean_loss_is_finite_though_the_sum_of_its_terms_is_not():
    differences, nothing = jnp.full(4, 1.5e19), jnp.zeros(4)
    assert fnn.MSELoss().forward(differences, nothing)[0] == pytest.approx(2.25e38, rel=1e-6)
    assert fnn.L1Loss().forward(jnp.full(2, 3e38), nothing[:2])[0] == pytest.approx(3e38, rel=1e-6)


def test_a_key_that_is_none_is_refused_by_name():
    for make in (
        lambda: fnn.Linear(2, 3).init(0),
        lambda: fnn.Dropout(0.5).forward((), jnp.ones(3), 0),
        lambda: fnn.sample_disk(0, 3),
    ):
        with pytest.raises(
            ValueError, match=r"\w+.*: expected a key such as jax.random.key.0., got"
        ):
            make()


@pytest.mark.parametrize("value", [0.0, 1.0, 1e20, 1e37])
def test_layer_norm_of_equal_numbers_is_0(value):
    layer, x = fnn.LayerNorm(4), jnp.full((1, 4), value)
    params = layer.init(jax.random.key(0))
    y, residuals = layer.forward(params, x)
    grads, dx = layer.backward(params, residuals, jnp.array([[1.0, -1.0, 2.0, 0.5]]))
    assert jnp.all(y == 0)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, dx)))
