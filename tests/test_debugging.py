"""observe reports what passes through a model, and find_nonfinite what first goes wrong."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw, make_network

import fnn

mse = fnn.MSELoss()
key = jax.random.key(0)
x, target = draw(1, (4, 3)), draw(2, (4, 2))


def recorder():
    """A list, and a callback that writes the reports into it."""
    reports = []

    def callback(place, direction, statistics):
        reports.append(
            (place, direction, *map(float, (statistics["norm"], statistics["nonfinite"])))
        )

    return reports, callback


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_every_layer_and_what_is_around_it_reports_what_passes(wrap):
    linear = fnn.Linear(3, 3)
    parallel = fnn.Parallel(fnn.freeze(fnn.Linear(3, 1)), fnn.Linear(3, 1))
    model = fnn.Sequential(
        fnn.Tanh(), fnn.repeat(fnn.Residual(fnn.Sequential(linear)), 2), parallel
    )
    reports, callback = recorder()
    params = model.init(key)
    plain = fnn.loss_and_grads(model, mse)(params, x, target)
    observed = wrap(fnn.loss_and_grads(fnn.observe(model, callback), mse))(params, x, target)
    jax.effects_barrier()
    chex.assert_trees_all_close(observed, plain, rtol=1e-6)
    counts = collections.Counter(report[:2] for report in reports)
    around = ["forward", "grads", "backward"]
    everything = ["parameters", *around]
    assert counts == {
        ("0 Tanh()", "forward"): 1,
        ("0 Tanh()", "backward"): 1,
        **{("1.repeat.Residual.0 Linear(3, 3)", direction): 2 for direction in everything},
        **{("1.repeat Residual", direction): 2 for direction in around},
        **{("1 repeat", direction): 1 for direction in around},
        **{("2.Parallel.0.freeze Linear(3, 1)", direction): 1 for direction in everything},
        **{("2.Parallel.0 freeze", direction): 1 for direction in around},
        **{("2.Parallel.1 Linear(3, 1)", direction): 1 for direction in everything},
        **{("2 Parallel", direction): 1 for direction in around},
    }
    norms = {report[:2]: report[2] for report in reports}
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(plain[1][1])])
    assert abs(norms["1 repeat", "grads"] - jnp.linalg.norm(flat)) < 1e-6
    assert norms["2.Parallel.0 freeze", "grads"] == 0 < norms["2 Parallel", "grads"]
    assert abs(norms["0 Tanh()", "forward"] - jnp.linalg.norm(jnp.tanh(x).ravel())) < 1e-6
    assert all(report[3] == 0 for report in reports)


def test_a_single_layer_is_observed_and_under_vmap_once_an_example():
    reports, callback = recorder()
    layer = fnn.observe(fnn.Tanh(), callback)
    jax.vmap(lambda x: layer.forward((), x)[0])(jnp.array([[0.0], [jnp.nan], [jnp.inf]]))
    jax.effects_barrier()
    assert [report[:2] for report in reports] == [("Tanh()", "forward")] * 3
    assert sorted(report[3] for report in reports) == [0, 0, 1]


def test_of_what_has_another_backward_the_parts_are_not_opened():
    reports, callback = recorder()
    inner = fnn.Sequential(fnn.Linear(3, 3), fnn.Tanh())
    changed = inner._replace(backward=lambda params, residuals, dy: (params, dy))
    model = fnn.observe(fnn.Sequential(changed, fnn.Linear(3, 2)), callback)
    params = model.init(key)
    _, grads = fnn.loss_and_grads(model, mse)(params, x, target)
    chex.assert_trees_all_equal(grads[0], params[0])
    assert {report[0] for report in reports} == {"0 Sequential", "1 Linear(3, 2)"}


def test_an_observed_model_keeps_names_and_infinite_norms():
    reports, callback = recorder()
    layer = fnn.observe(fnn.observe(fnn.Linear(3, 2), callback), callback)
    with jax.debug_nans(True):
        layer.forward(layer.init(key), x.at[0, 0].set(jnp.inf))
    assert {report[0] for report in reports} == {"Linear(3, 2)"}
    assert reports[-1] == ("Linear(3, 2)", "forward", jnp.inf, 2)


def test_what_is_observed_is_opened_as_before():
    model = fnn.Sequential(fnn.remat(fnn.Sequential(fnn.Linear(3, 3), fnn.Tanh())), fnn.Identity())
    (reports, callback), (more, another) = recorder(), recorder()
    observed = fnn.observe(model, callback)
    assert fnn.summary(fnn.observe(fnn.Residual(fnn.Tanh()), callback), (4, 3)) == fnn.summary(
        fnn.Residual(fnn.Tanh()), (4, 3)
    )
    params = model.init(key)
    params[0][0]["W"] = params[0][0]["W"].at[0].set(jnp.nan)
    mean = fnn.Loss(lambda y, t: (jnp.mean(y), y), jnp.ones_like)
    expected = ("0.remat.0 Linear(3, 3)", "parameters")
    assert fnn.find_nonfinite(observed, mean, params, x, target) == expected
    jax.effects_barrier()
    reports.clear()
    fnn.loss_and_grads(fnn.observe(observed, another), mean)(params, x, target)
    jax.effects_barrier()
    assert len(reports) > 8
    assert sorted(map(str, reports)) == sorted(map(str, more))


NETWORK = fnn.Sequential(make_network(), fnn.Tanh())
PARAMS = NETWORK.init(key)


def planted(value, index, leaf):
    params = jax.tree.map(lambda array: array, PARAMS)
    params[0][index][leaf] = params[0][index][leaf].at[0].set(value)
    return {"params": params}


def broken(direction):
    """The network, in which layer 0.2 multiplies by infinity what passes in the direction."""
    linear = fnn.Linear(8, 5)

    def forward(params, x, key=None):
        y, residuals = linear.forward(params, x, key)
        return (y * jnp.inf if direction == "forward" else y), residuals

    def backward(params, residuals, dy):
        grads, dx = linear.backward(params, residuals, dy)
        if direction == "grads":
            grads = jax.tree.map(lambda leaf: leaf * jnp.inf, grads)
        return grads, (dx if direction == "forward" else dx * jnp.inf)

    layers = [fnn.Linear(3, 8), fnn.LeakyReLU(), fnn.Layer(linear.init, forward, backward)]
    network = fnn.Sequential(*layers, fnn.Tanh(), fnn.Linear(5, 2))
    return {"model": fnn.Sequential(network, fnn.Tanh())}


def repeated(change):
    """A network of three equal blocks, some of whose weights are changed."""
    blocks = fnn.repeat(fnn.remat(fnn.Residual(fnn.Linear(3, 3))), 3)
    model = fnn.Sequential(fnn.Tanh(), blocks, fnn.Linear(3, 2))
    params = model.init(key)
    return {
        "model": model,
        "params": (params[0], {**params[1], "W": change(params[1]["W"])}, params[2]),
    }


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        ({"x": x.at[1, 2].set(jnp.nan)}, ("x", "forward")),
        ({"target": target.at[1, 0].set(-jnp.inf)}, ("target", "forward")),
        (planted(jnp.nan, 2, "W"), ("0.2 Linear(8, 5)", "parameters")),
        (planted(jnp.inf, 4, "b"), ("0.4 Linear(5, 2)", "parameters")),
        (broken("forward"), ("0.2 broken", "forward")),
        (broken("grads"), ("0.2 broken", "grads")),
        (broken("backward"), ("0.2 broken", "backward")),
        ({"target": jnp.full_like(target, 1e30)}, ("loss", "forward")),
        (
            {"loss": mse._replace(backward=lambda residuals: residuals / 0)},
            ("loss", "backward"),
        ),
        (
            {"model": fnn.with_compute_dtype(NETWORK, jnp.float16), **planted(1e30, 2, "W")},
            ("with_compute_dtype.0.2 Linear(8, 5)", "parameters"),
        ),
        (
            repeated(lambda leaf: leaf.at[1].set(jnp.nan)),
            ("1.repeat.remat.Residual Linear(3, 3)", "parameters"),
        ),
        (
            repeated(lambda leaf: 1e25 * leaf),
            ("1.repeat.remat.Residual Linear(3, 3)", "forward"),
        ),
    ],
    ids=lambda part: " " if isinstance(part, dict) else str(part),
)
def test_the_first_nonfinite_number_is_found_where_it_arises(changed, expected):
    case = {"model": NETWORK, "loss": mse, "params": PARAMS, "x": x, "target": target}
    with jax.debug_nans(True), jax.debug_infs(True):
        assert fnn.find_nonfinite(**{**case, **changed}) == expected


def test_what_is_random_is_looked_at_with_the_key():
    model = fnn.Sequential(fnn.Dropout(0.5), fnn.Tanh(), fnn.Linear(3, 2))
    find = functools.partial(fnn.find_nonfinite, model, mse, model.init(key))
    huge = jnp.full_like(x, 3e38)
    assert find(huge, target) is None
    assert find(huge, target, key) == ("0 Dropout(0.5)", "forward")


def test_nothing_is_looked_for_in_arrays_without_values():
    with pytest.raises(ValueError, match="expected arrays with values"):
        jax.jit(lambda params: fnn.find_nonfinite(NETWORK, mse, params, x, target))(PARAMS)


def test_functions_wrapped_around_a_sequentials_are_not_opened():
    """Of a copy that vmap or a decorator has made, nothing is lost."""
    inner = fnn.Sequential(fnn.Linear(3, 3), fnn.Tanh())

    @functools.wraps(inner.backward)
    def backward(params, residuals, dy):
        grads, dx = inner.backward(params, residuals, dy)
        return grads, 0 * dx

    mapped = jax.vmap(inner.forward, (None, 0, None)), jax.vmap(inner.backward, (None, 0, 0))
    params = inner.init(key)
    for layer in (inner._replace(backward=backward), fnn.Layer(inner.init, *mapped)):
        reports, callback = recorder()
        observed = fnn.observe(layer, callback)
        y, residuals = observed.forward(params, x, None)
        actual = observed.backward(params, residuals, y)
        chex.assert_trees_all_equal(actual, layer.backward(params, residuals, y))
        jax.effects_barrier()
        assert ("Sequential", "backward") in {report[:2] for report in reports}
