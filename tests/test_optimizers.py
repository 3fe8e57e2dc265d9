import functools
import math

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn

params = {"W": jnp.array([[1.0, -2.0]]), "b": (jnp.array([0.5]),)}


def torch_rule(p, grads, rate, momentum, nesterov, weight_decay):
    """torch.optim.SGD's documented algorithm for one number, in Python."""
    velocity = None
    for grad in grads:
        grad = grad + weight_decay * p
        if momentum:
            velocity = grad if velocity is None else momentum * velocity + grad
            grad = grad + momentum * velocity if nesterov else velocity
        p = p - rate * grad
    return p


@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay"),
    [(0, False, 0), (0, False, 0.1), (0.9, False, 0), (0.9, True, 0), (0.5, True, 0.1)],
)
def test_sgd_follows_torchs_rule(momentum, nesterov, weight_decay):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        optimizer = fnn.sgd(0.1, momentum, nesterov, weight_decay)
        state, new = optimizer.init(wide), wide
        grads = [0.3, -0.2, 0.7, 0.1]
        for grad in grads:
            grad = jax.tree.map(functools.partial(jnp.full_like, fill_value=grad), wide)
            new, state = optimizer.update(grad, state, new)
        expected = jax.tree.map(
            lambda leaf: jnp.array(
                [
                    torch_rule(p, grads, 0.1, momentum, nesterov, weight_decay)
                    for p in leaf.ravel().tolist()
                ]
            ).reshape(leaf.shape),
            wide,
        )
        chex.assert_trees_all_close(new, expected, rtol=1e-14)
        assert state.step == 4


def test_state_without_momentum_holds_the_step_alone():
    assert jax.tree.leaves(fnn.sgd(0.1).init(params)) == [0]
    velocity = fnn.sgd(0.1, momentum=0.9).init(params).velocity
    chex.assert_trees_all_equal(velocity, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.parametrize(("make", "rtol"), [(fnn.sgd, 0), (fnn.adam, 1e-6)])
def test_schedules_are_called_with_the_step_from_0(make, rtol):
    optimizer = make(lambda step: jnp.array([1.0, 10.0, 100.0])[step])
    p, state = jnp.array(0.0), optimizer.init(jnp.array(0.0))
    seen = []
    for _ in range(3):
        p, state = optimizer.update(jnp.array(-1.0), state, p)
        seen.append(p.item())
    assert seen == pytest.approx([1, 11, 111], rel=rtol, abs=0)
    for _ in range(20):
        p, state = optimizer.update(jnp.array(0.0), state, p)
    assert state.step == 23


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "rate",
    [
        0.25,
        fnn.constant(0.25),
        fnn.cosine_decay(0.25, 10),
        fnn.exponential_decay(0.25, 10, 0.5),
        fnn.piecewise_constant([1], [0.25, 0.1]),
    ],
)
def test_dtypes_are_preserved(dtype, rate):
    with jax.enable_x64(True):
        tree = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        optimizer = fnn.sgd(rate, momentum=0.5, weight_decay=0.5)
        state = optimizer.init(tree)
        new, new_state = optimizer.update(tree, state, tree)
        chex.assert_trees_all_equal_shapes_and_dtypes((new, new_state), (tree, state))
        chex.assert_trees_all_equal(new["b"][0], jnp.array([0.5 - 0.25 * 0.75], dtype))


def test_16_bit_parameters_are_updated_in_float32():
    optimizer = fnn.sgd(jnp.float32(0.1), weight_decay=0.3)
    p, grad = draw(1, (1000,), jnp.bfloat16), draw(2, (1000,), jnp.bfloat16)
    new, _ = optimizer.update(grad, optimizer.init(p), p)
    wide_p, wide_grad = p.astype(jnp.float32), grad.astype(jnp.float32)
    expected = (wide_p - 0.1 * (wide_grad + 0.3 * wide_p)).astype(jnp.bfloat16)
    assert jnp.mean(new == expected) > 0.99


def test_grads_of_another_dtype_are_converted():
    with jax.enable_x64(True):
        optimizer = fnn.sgd(0.1, momentum=0.9)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        new, state = optimizer.update(wide, optimizer.init(params), params)
        chex.assert_trees_all_equal_shapes_and_dtypes((new, state.velocity), (params, params))


def test_params_may_be_a_number():
    optimizer = fnn.sgd(0.5, momentum=0.9)
    new, _ = optimizer.update(1.0, optimizer.init(2.0), 2.0)
    assert new == 1.5


def test_every_number_may_be_traced():
    def train(rate, momentum, weight_decay):
        optimizer = fnn.sgd(rate, momentum, weight_decay=weight_decay)
        new, state = optimizer.update(params, optimizer.init(params), params)
        return optimizer.update(params, state, new)[0]

    numbers = jnp.array([[0.1, 0.0, 0.0], [0.2, 0.9, 0.1]])
    many = jax.jit(jax.vmap(train))(*numbers.T)
    for index, row in enumerate(numbers.tolist()):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], many)
        chex.assert_trees_all_close(one, train(*row), rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: {**p, "W": jnp.ones((1, 1))},
        lambda p: {**p, "W": jnp.ones(2)},
        lambda p: {"W": p["W"]},
        lambda p: {**p, "b": p["b"][0]},
        lambda p: {**p, "b": ()},
        lambda p: jax.tree.map(lambda leaf: leaf.astype(jnp.int32), p),
    ],
)
def test_grads_and_velocity_must_be_like_params(change):
    optimizer = fnn.sgd(0.1, momentum=0.9)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="sgd: expected grads"):
        optimizer.update(change(params), state, params)
    with pytest.raises(ValueError, match="sgd: expected velocity"):
        optimizer.update(params, state._replace(velocity=change(params)), params)


def test_a_schedule_must_return_a_scalar():
    optimizer = fnn.sgd(lambda step: jnp.ones(2))
    with pytest.raises(ValueError, match=r"learning rate of shape \(\), got \(2,\)"):
        optimizer.update(params, optimizer.init(params), params)


@pytest.mark.parametrize("x64", [False, True])
def test_cosine_decay_follows_its_formula(x64):
    with jax.enable_x64(x64):
        rate = fnn.cosine_decay(0.5, 110, warmup_steps=10)
        for step in (0, 1, 5, 9, 10, 11, 60, 109, 110, 1000):
            progress = min(1, (step - 10) / 100)
            cosine = 0.5 * (1 + math.cos(math.pi * progress)) / 2
            expected = 0.5 * step / 10 if step < 10 else cosine
            for given in (step, jnp.int32(step)):
                assert abs(float(rate(given)) - expected) < 1e-7
        assert fnn.cosine_decay(0.5, 100)(0) == 0.5
        assert fnn.cosine_decay(0.5, 100)(100) == 0.0


def test_schedules_work_on_traced_steps_and_peaks():
    steps = jnp.arange(4)
    rates = jax.jit(jax.vmap(lambda peak: jax.vmap(fnn.cosine_decay(peak, 3))(steps)))
    chex.assert_trees_all_close(
        rates(jnp.array([1.0, 2.0])), jnp.array([[1, 0.75, 0.25, 0], [2, 1.5, 0.5, 0]]), atol=1e-6
    )
    assert jax.vmap(lambda rate: fnn.constant(rate)(0))(draw(1, (3,))).shape == (3,)
    halfway = jax.vmap(lambda total, warmup: fnn.cosine_decay(1.0, total, warmup)(5))
    chex.assert_trees_all_close(
        halfway(jnp.array([10, 10]), jnp.array([0, 5])), jnp.array([0.5, 1.0])
    )


def test_adam_follows_its_rule():
    b1, b2, eps, decay, rate = 0.8, 0.95, 1e-6, 0.1, 0.05
    optimizer = fnn.adam(rate, b1, b2, eps, decay)
    with jax.enable_x64(True):
        p, state = jnp.array(2.0), optimizer.init(jnp.array(2.0))
        expected, m, v = 2.0, 0.0, 0.0
        for step, grad in enumerate([1.0, -3.0, 0.5, 0.0], 1):
            p, state = optimizer.update(jnp.array(grad), state, p)
            m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
            direction = (m / (1 - b1**step)) / (math.sqrt(v / (1 - b2**step)) + eps)
            expected -= rate * (direction + decay * expected)
            assert abs(p.item() - expected) < 1e-14
        assert state.step == 4


def test_adams_first_step_is_the_rate_in_float32_too():
    optimizer = fnn.adam(0.001)
    for grad in (1e-3, 1.0, 1e4):
        p, _ = optimizer.update(jnp.array(grad), optimizer.init(jnp.array(0.0)), jnp.array(0.0))
        assert abs(p.item() / -0.001 - 1) < 1e-6 + 1e-8 / grad


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_adam_preserves_dtypes_with_moments_in_float32(dtype):
    with jax.enable_x64(True):
        tree = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        optimizer = fnn.adam(fnn.cosine_decay(0.25, 10), weight_decay=0.1)
        state = optimizer.init(tree)
        new, new_state = jax.jit(optimizer.update)(tree, state, tree)
        chex.assert_trees_all_equal_shapes_and_dtypes((new, new_state), (tree, state))
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(state[1:])} == {jnp.dtype(wide)}


def test_adams_numbers_may_be_traced():
    def train(rate, b1, b2, eps, decay):
        optimizer = fnn.adam(rate, b1, b2, eps, decay)
        new, state = optimizer.update(params, optimizer.init(params), params)
        return optimizer.update(params, state, new)[0]

    numbers = [0.1, 0.9, 0.99, 1e-6, 0.1]
    chex.assert_trees_all_close(jax.jit(train)(*numbers), train(*numbers), rtol=1e-5)
    chex.assert_trees_all_close(train(0.1, 0.0, 0.0, 1e-6, 0.0), train(0.1, 0, 0, 1e-6, 0))


def test_gradients_are_scaled_down_to_the_norm_and_never_up():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    start = jax.tree.map(jnp.zeros_like, grads)
    for max_norm, factor in ((1.0, 0.2), (5.0, 1.0), (100.0, 1.0)):
        optimizer = fnn.clip_by_global_norm(fnn.sgd(1.0), max_norm)
        new, _ = jax.jit(optimizer.update)(grads, optimizer.init(start), start)
        expected = {"a": jnp.array([-3 * factor, 0]), "b": jnp.array([[-4 * factor]])}
        chex.assert_trees_all_close(new, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e30, 1e-30, 0.0])
def test_norms_beyond_the_range_of_squares_are_clipped_right(scale):
    grads = jnp.array([3.0, 4.0]) * jnp.float32(scale)
    optimizer = fnn.clip_by_global_norm(fnn.sgd(1.0), 1.0)
    new, _ = optimizer.update(grads, optimizer.init(grads), jnp.zeros(2))
    expected = -grads if scale < 1 else jnp.array([-0.6, -0.8])
    chex.assert_trees_all_close(new, expected, rtol=1e-6)


def test_any_bound_above_0_is_one():
    start = jnp.zeros(2)

    @jax.jit
    def update(grads, max_norm):
        optimizer = fnn.clip_by_global_norm(fnn.sgd(1.0), max_norm)
        return optimizer.update(grads, optimizer.init(start), start)[0]

    for grads in (jnp.array([3.0, 4.0]), start):
        for bound in (jnp.inf, 3e38):
            assert jnp.all(update(grads, bound) == -grads)
        assert jnp.allclose(update(grads, 1e-45), start)


def test_16_bit_gradients_are_clipped_in_float32():
    grads, start = draw(1, (1000,), jnp.bfloat16), jnp.zeros(1000, jnp.bfloat16)
    wide = grads.astype(jnp.float32)
    for bound in (0.6, 0.7, 0.8, 0.9):
        optimizer = fnn.clip_by_global_norm(fnn.sgd(1.0), bound)
        new, _ = optimizer.update(grads, optimizer.init(start), start)
        expected = (-wide * (bound / jnp.linalg.norm(wide))).astype(jnp.bfloat16)
        assert jnp.mean(new == expected) > 0.99


def test_clipping_hides_no_nan_and_preserves_dtypes():
    optimizer = fnn.clip_by_global_norm(fnn.adam(0.1), 1.0)
    for bad in (jnp.nan, jnp.inf):
        tree = {"a": jnp.array([bad, 1.0], jnp.bfloat16), "b": jnp.ones(3)}
        start = jax.tree.map(jnp.zeros_like, tree)
        new, _ = optimizer.update(tree, optimizer.init(start), start)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, tree)
        assert jnp.isnan(new["a"][0])
    assert optimizer.update((), optimizer.init(()), ())[0] == ()


def test_exponential_and_piecewise_rates_follow_formulas():
    rate = fnn.exponential_decay(0.5, 10, 0.1)
    for step in (0, 1, 10, 25):
        assert abs(rate(step).item() - 0.5 * 0.1 ** (step / 10)) < 1e-7
    rate = fnn.piecewise_constant([2, 5], [1.0, 0.5, 0.25])
    assert [rate(step).item() for step in range(7)] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    rates = jax.jit(
        jax.vmap(lambda scale: jax.vmap(fnn.piecewise_constant([1], [scale, 0.0]))(jnp.arange(2)))
    )
    assert rates(jnp.array([1.0, 3.0])).tolist() == [[1, 0], [3, 0]]
    decays = jax.vmap(lambda base: fnn.exponential_decay(1.0, 2, base)(4))
    assert decays(jnp.array([0.5, 1.0])).tolist() == [0.25, 1]


def test_linear_decay_one_cycle_and_warmup_follow_formulas():
    """tests/test_parity.py has PyTorch's numbers."""
    steps = jnp.arange(14)
    decays, cycles, warm, cosine = jax.jit(
        lambda: [
            jax.vmap(rate)(steps)
            for rate in (
                fnn.linear_decay(0.5, 10, 0.1),
                fnn.one_cycle(0.5, 10),
                fnn.warmup(fnn.cosine_decay(0.5, 7), 4),
                fnn.cosine_decay(0.5, 11, 4),
            )
        ]
    )()
    expected = jnp.array([0.5 - 0.04 * min(step, 10) for step in range(14)])
    chex.assert_trees_all_close(decays, expected, rtol=1e-6)
    ends = cycles[jnp.array([0, 2, 9, 13])]
    chex.assert_trees_all_close(ends, jnp.array([0.02, 0.5, 2e-6, 2e-6]), rtol=1e-3)
    chex.assert_trees_all_close(warm, cosine, rtol=1e-6, atol=1e-7)
    assert [fnn.warmup(0.5, 2)(step).item() for step in range(4)] == [0, 0.25, 0.5, 0.5]
    assert fnn.warmup(0.5, 0)(0) == 0.5


def test_a_cycle_may_have_one_phase_alone():
    with jax.debug_nans(True):
        for pct_start, first in ((0.0, 0.5), (0.25, 0.5), (1.0, 0.02)):
            rate = fnn.one_cycle(0.5, 4, pct_start=pct_start)
            assert rate(0) == pytest.approx(first, rel=0.4)
            assert rate(3) == pytest.approx(0.5 if pct_start == 1 else 2e-6, rel=1e-3)
        assert fnn.one_cycle(0.5, 1)(0) == pytest.approx(2e-6, rel=1e-3)


def test_new_schedules_take_traced_numbers_and_check_others():
    @jax.jit
    def rates(peak, total, share):
        cycle = fnn.one_cycle(peak, total, pct_start=share, div_factor=peak, final_div_factor=total)
        return cycle(3), fnn.linear_decay(peak, total, peak / 2)(3), fnn.warmup(peak, total)(3)

    cycle, linear, warm = rates(jnp.float32(2.0), 10, 0.4)
    assert (cycle, linear, warm) == pytest.approx((2.0, 1.7, 0.6))
    for make, message in [
        (lambda: fnn.linear_decay(-1.0, 10), "linear_decay: expected peak"),
        (lambda: fnn.linear_decay(1.0, 0), "linear_decay: expected total_steps"),
        (
            lambda: fnn.one_cycle(1.0, 10, pct_start=1.5),
            "one_cycle: expected pct_start to be at most",
        ),
        (lambda: fnn.one_cycle(1.0, 10, div_factor=0.0), "one_cycle: expected div_factor"),
        (lambda: fnn.warmup(0.1, -1), "warmup: expected steps"),
        (lambda: fnn.warmup(-0.1, 1), "warmup: expected schedule"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_lion_follows_its_rule():
    b1, b2, decay, rate = 0.8, 0.95, 0.1, 0.05
    optimizer = fnn.lion(rate, b1, b2, decay)
    with jax.enable_x64(True):
        p, state = jnp.array(2.0), optimizer.init(jnp.array(2.0))
        expected, m = 2.0, 0.0
        for grad in (0.0, 1.0, -3.0, 0.5, -0.1):
            p, state = optimizer.update(jnp.array(grad), state, p)
            c = b1 * m + (1 - b1) * grad
            expected -= rate * ((c > 0) - (c < 0) + decay * expected)
            m = b2 * m + (1 - b2) * grad
            assert p.item() == pytest.approx(expected, rel=1e-14)


full_rmsprop = functools.partial(fnn.rmsprop, momentum=0.5, centered=True, weight_decay=0.1)
NEW = {
    "rmsprop": (full_rmsprop, {"decay": 0.9, "eps": 1e-6, "momentum": 0.5, "weight_decay": 0.1}),
    "adagrad": (fnn.adagrad, {"initial_accumulator": 0.5, "eps": 1e-6}),
    "lion": (fnn.lion, {"b1": 0.9, "b2": 0.99, "weight_decay": 0.1}),
}
every_new = pytest.mark.parametrize("name", NEW)


@every_new
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_new_optimizers_preserve_dtypes_with_moments_in_float32(name, dtype):
    with jax.enable_x64(True):
        tree = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        optimizer = NEW[name][0](fnn.cosine_decay(0.25, 10))
        state = optimizer.init(tree)
        new, new_state = jax.jit(optimizer.update)(tree, state, tree)
        chex.assert_trees_all_equal_shapes_and_dtypes((new, new_state), (tree, state))
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(state[1:])} == {jnp.dtype(wide)}
    assert optimizer.update((), optimizer.init(()), ())[0] == ()


@every_new
def test_the_numbers_of_new_optimizers_may_be_traced_and_are_checked(name):
    make, numbers = NEW[name]

    def train(rate, numbers):
        optimizer = make(rate, **numbers)
        new, state = optimizer.update(params, optimizer.init(params), params)
        return optimizer.update(params, state, new)[0]

    chex.assert_trees_all_close(jax.jit(train)(0.1, numbers), train(0.1, numbers), rtol=1e-5)
    for what in numbers:
        bad = 1.0 if what in ("decay", "b1", "b2") else -1.0
        with pytest.raises(ValueError, match=f"{name}: expected {what} to be"):
            make(0.1, **{what: bad})
    state = make(0.1).init(params)
    with pytest.raises(ValueError, match=f"{name}: expected {state._fields[1]} of shapes"):
        make(0.1).update(params, state._replace(**{state._fields[1]: ()}), params)
    with pytest.raises(ValueError, match=f"expected a state of {name}, got SGDState"):
        make(0.1).update(params, fnn.sgd(0.1).init(params), params)


@every_new
def test_the_nans_of_new_optimizers_do_not_depend_on_compilation(name):
    optimizer, start = NEW[name][0](0.1), jnp.ones(8)
    grads = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.0, 1e20, -1e30, 1e-30, 1.0])
    state = optimizer.init(start)
    with jax.disable_jit():
        eager, _ = optimizer.update(grads, state, start)
    compiled, _ = jax.jit(optimizer.update)(grads, state, start)
    assert jnp.isnan(eager).tolist() == jnp.isnan(compiled).tolist()
    assert jnp.isfinite(eager[3:]).all()
    assert jnp.isfinite(compiled[3:]).all()


def test_centered_rmsprop_is_finite_where_the_variance_is_rounded_to_0():
    optimizer, p = fnn.rmsprop(0.1, 0.5, centered=True), jnp.array([1.0, 1.0])
    state, update = optimizer.init(p), jax.jit(optimizer.update)
    with jax.debug_nans(True):
        for _ in range(60):
            p, state = update(jnp.array([0.1, 0.0]), state, p)
    assert jnp.isfinite(p).all()


batch_norm = {"scale": jnp.ones(2), "bias": jnp.ones(2), "mean": jnp.ones(2), "var": jnp.ones(2)}
NESTED = ({"W": jnp.ones((2, 2))}, ((batch_norm, ()), {"mean": {"W": jnp.ones(1)}}))
DECAYING = {
    "sgd": fnn.sgd(0.1, momentum=0.9, weight_decay=0.1),
    "adam": fnn.adam(0.1, weight_decay=0.1),
    "rmsprop": fnn.rmsprop(0.1, weight_decay=0.1),
    "lion": fnn.lion(0.1, weight_decay=0.1),
    "with_l2": fnn.with_l2(fnn.adagrad(0.1), 0.1),
    "only": fnn.only(fnn.adam(0.1, weight_decay=0.1), lambda path, leaf: True),
}


@pytest.mark.parametrize("optimizer", DECAYING.values(), ids=DECAYING.keys())
def test_weight_decay_leaves_batch_norms_statistics_alone(optimizer):
    zeros = jax.tree.map(jnp.zeros_like, NESTED)
    new, _ = optimizer.update(zeros, optimizer.init(NESTED), NESTED)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="."): bool(jnp.all(leaf < 1))
        for path, leaf in jax.tree.leaves_with_path(new)
    }
    others = {"0.W", "1.0.0.scale", "1.0.0.bias", "1.1.mean.W"}
    assert moved == dict.fromkeys(others, True) | {"1.0.0.mean": False, "1.0.0.var": False}


def test_l2_is_the_penalty_in_the_gradient_in_float32_for_16_bits():
    for dtype in (jnp.float32, jnp.bfloat16):
        p, grad = draw(1, (100,), dtype), draw(2, (100,), dtype)
        one, other = fnn.with_l2(fnn.sgd(0.1), 0.03), fnn.sgd(0.1, weight_decay=0.03)
        actual, _ = one.update(grad, one.init(p), p)
        chex.assert_trees_all_equal(actual, other.update(grad, other.init(p), p)[0])
    with pytest.raises(ValueError, match="with_l2: expected grads of shapes"):
        one.update(grad[:3], one.init(p), p)


network = ({"W": draw(1, (3, 2)), "b": draw(2, (3,))}, (), {"W": draw(3, (1, 3)), "b": jnp.ones(1)})
is_matrix = ({"W": True, "b": False}, (), {"W": True, "b": False})


@pytest.mark.parametrize("where", [lambda path, leaf: path.endswith("W"), is_matrix])
def test_only_the_chosen_leaves_are_updated_and_have_a_state(where):
    grads = jax.tree.map(lambda p: p + 1, network)
    optimizer = fnn.only(fnn.adam(0.1), where)
    state = optimizer.init(network)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(), (3, 2), (1, 3), (3, 2), (1, 3)]
    new, state = optimizer.update(grads, state, network)
    adam = fnn.adam(0.1)
    whole, _ = adam.update(grads, adam.init(network), network)
    expected = jax.tree.map(lambda a, b, c: a if c else b, whole, network, is_matrix)
    chex.assert_trees_all_equal(new, expected)
    assert state.others == ()


def test_the_other_leaves_are_updated_by_the_other_optimizer():
    grads = jax.tree.map(lambda p: p + 1, network)
    optimizer = fnn.only(
        fnn.adam(0.1, weight_decay=0.5),
        where=lambda path, leaf: leaf.ndim > 1 and leaf.dtype == jnp.float32,
        otherwise=fnn.only(fnn.sgd(0.1), lambda path, leaf: path == "0.b", fnn.lion(0.5)),
    )
    new, _ = optimizer.update(grads, optimizer.init(network), network)
    chex.assert_trees_all_close(new[0]["b"], network[0]["b"] - 0.1 * grads[0]["b"])
    chex.assert_trees_all_close(new[2]["b"], network[2]["b"] - 0.5)
    adam = fnn.adam(0.1, weight_decay=0.5)
    whole, _ = adam.update(grads, adam.init(network), network)
    chex.assert_trees_all_equal((new[0]["W"], new[2]["W"]), (whole[0]["W"], whole[2]["W"]))


def test_only_says_what_where_has_to_be():
    for where, message in [
        (is_matrix[:2], "expected where of the structure"),
        (lambda path, leaf: "yes", r"expected where to give a bool for '0.W', got 'yes'"),
        (lambda path, leaf: jnp.ones(2, bool), "expected where to give a bool for '0.W', got"),
    ]:
        with pytest.raises(ValueError, match=f"only: {message}"):
            fnn.only(fnn.adam(0.1), where).init(network)
    for arguments in ((0.1, is_matrix), (fnn.adam(0.1), is_matrix, 0.1)):
        with pytest.raises(ValueError, match="only: expected an Optimizer"):
            fnn.only(*arguments)
    optimizer = fnn.only(fnn.adam(0.1), is_matrix)
    with pytest.raises(ValueError, match="expected a state of only, got AdamState"):
        optimizer.update(network, fnn.adam(0.1).init(network), network)
    with pytest.raises(ValueError, match="only: expected grads of shapes"):
        optimizer.update(network[0], optimizer.init(network), network)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_moving_average_follows_its_formula(dtype):
    optimizer, p = fnn.with_moving_average(fnn.sgd(0.5), 0.75), jnp.array([1.0, 8.0], dtype)
    state = optimizer.init(p)
    average = p.astype(jnp.float32)
    assert state.average.dtype == jnp.float32
    for grad in (1.0, -2.0, 0.5):
        p, state = optimizer.update(jnp.full(2, grad, dtype), state, p)
        average = 0.75 * average + 0.25 * p.astype(jnp.float32)
        chex.assert_trees_all_close(state.average, average, rtol=1e-6)
    with pytest.raises(ValueError, match="with_moving_average: expected average of shapes"):
        optimizer.update(p, state._replace(average=p[0]), p)
    with pytest.raises(ValueError, match="expected a state of with_moving_average, got SGDState"):
        optimizer.update(p, state.inner, p)
    with pytest.raises(ValueError, match="with_moving_average: expected decay to be below 1"):
        fnn.with_moving_average(fnn.sgd(0.1), 1.0)


def test_wrapped_optimizers_work_in_every_program(tmp_path):
    """jit with donation, scan, vmap, a checkpoint, a mesh."""
    model = fnn.Sequential(fnn.Linear(2, 3), fnn.Tanh(), fnn.Linear(3, 1))
    optimizer = fnn.with_moving_average(
        fnn.only(
            fnn.clip_by_global_norm(fnn.with_l2(full_rmsprop(0.01), 0.1), 1.0),
            where=lambda path, leaf: leaf.ndim > 1,
            otherwise=fnn.lion(fnn.warmup(0.01, 2)),
        ),
        0.9,
    )
    x, target, loss = draw(1, (8, 2)), draw(2, (8, 1)), fnn.MSELoss()
    start = fnn.init_train_state(model, optimizer, jax.random.key(0))
    step = fnn.make_train_step(model, loss, optimizer)
    expected, _ = step(step(start, x, target)[0], x, target)

    scanned, _ = jax.lax.scan(lambda state, _: step(state, x, target), start, length=2)
    chex.assert_trees_all_close(scanned, expected, rtol=1e-5)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
    steps = jax.jit(jax.vmap(step, (0, None, None)))
    many, _ = steps(steps(many, x, target)[0], x, target)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], many), expected, rtol=1e-5)

    mesh = fnn.data_parallel_mesh(jax.devices("cpu")[:4])
    sharded = fnn.replicate(mesh, start)
    for _ in range(2):
        sharded, _ = step(sharded, *fnn.shard_batch(mesh, (x, target)))
    chex.assert_trees_all_close(jax.device_get(sharded), jax.device_get(expected), rtol=1e-5)

    fnn.save(tmp_path / "state.npz", start)
    loaded = fnn.load(tmp_path / "state.npz", start)
    chex.assert_trees_all_equal(loaded, start)
    donating = fnn.make_train_step(model, loss, optimizer, donate=True)
    jitted = jax.jit(functools.partial(fnn.init_train_state, model, optimizer))(jax.random.key(0))
    for state in (loaded, start, jitted):
        for _ in range(2):
            state, _ = donating(state, x, target)
        chex.assert_trees_all_close(state, expected, rtol=1e-5)
    y = fnn.predict(model, expected.opt_state.average, x)
    assert y.shape == (8, 1)
