"""The page that plays a training back: its numbers are those of forward and backward."""

import base64
import functools
import html.parser
import itertools
import json
import re
import shutil
import struct
import subprocess
import zlib

import jax
import jax.numpy as jnp
import pytest
from shared.backprop import page as page_module
from shared.backprop.page import epochs_to_keep, page

import fnn

MODEL = fnn.Sequential(
    fnn.Linear(2, 5), fnn.Sequential(fnn.Tanh(), fnn.Linear(5, 3)), fnn.ReLU(), fnn.Linear(3, 2)
)
POINTS = jax.random.uniform(jax.random.key(0), (30, 2))
LABELS = (POINTS[:, 0] > 0.5).astype(int)
ONE_HOT = jax.nn.one_hot(LABELS, 2)
COLUMNS = ["x", "Linear(2, 5)", "Tanh()", "Linear(5, 3)", "ReLU()", "Linear(3, 2)"]


def numbers_of(text):
    (data,) = re.findall(r'<script type="application/json" id="numbers">(.*?)</script>', text)
    return json.loads(data)


def read(field):
    data = zlib.decompress(base64.b64decode(field["data"]))
    kind = {"int8": "b", "int16": "h", "float32": "f"}[field["type"]]
    numbers = struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data)
    return jnp.array(numbers).reshape(field["shape"])


def unpacked(numbers, name):
    """The numbers of a field, (moments, rows, n), and how far each may be off."""
    field = numbers["numbers"][name]
    limit = {"int8": 127, "int16": 32767}[field["type"]]
    parts, scales = read(field) / limit, read(field["scales"])
    columns = numbers["columns"]
    sizes = [column["shown"] for column in columns]
    if name.startswith("weight"):
        sizes = [column["shown"] for column in columns[1:] if column["weights"]]
    assert sum(sizes) == parts.shape[1]
    scales = jnp.repeat(scales, jnp.array(sizes), axis=1)[..., None]
    step = 0.51 / limit
    errors = (2 * abs(parts) + step) * step * scales
    return jnp.where(parts < -1, jnp.nan, parts * abs(parts) * scales), errors


def cell_centres(cells):
    steps = [(cell + 0.5) / cells for cell in range(cells)]
    return jnp.array([[x, y] for y in steps for x in steps])


def flat(model, params):
    """(function of x, params) for each layer, those in a Sequential one after the other."""
    if model.rebuild is fnn.Sequential:
        pairs = zip(model.layers, params, strict=True)
        return [layer for pair in pairs for layer in flat(*pair)]
    return [lambda x: model.forward(params, x)[0]]


def values_and_derivatives(params, x, target):
    """Of every unit at one x, in order: its value, and by jax.grad the derivative of the loss."""
    functions = flat(MODEL, params)
    values, derivatives = [], []
    for number in range(len(functions) + 1):

        def rest(value, number=number):
            for function in functions[number:]:
                value = function(value)
            return jnp.mean((value - target) ** 2)

        values.append(x)
        derivatives.append(jax.grad(rest)(x))
        if number < len(functions):
            x = functions[number](x)
    return jnp.concatenate(values), jnp.concatenate(derivatives)


@pytest.fixture(scope="module")
def params_by_epoch():
    return {epoch: jax.jit(MODEL.init)(jax.random.key(epoch)) for epoch in (0, 1, 7)}


@pytest.fixture(scope="module")
def text(params_by_epoch):
    return page(MODEL, params_by_epoch, POINTS, LABELS, title="A title")


@pytest.fixture(scope="module")
def numbers(text):
    return numbers_of(text)


@pytest.fixture(scope="module")
def by_grad():
    return jax.jit(jax.vmap(values_and_derivatives, in_axes=(None, 0, 0), out_axes=1))


def test_a_column_for_x_and_for_each_layer(numbers):
    assert [column["name"] for column in numbers["columns"]] == COLUMNS
    assert [column["place"] for column in numbers["columns"]] == ["", "0", "1.0", "1.1", "2", "3"]
    assert [column["width"] for column in numbers["columns"]] == [2, 5, 5, 3, 3, 2]
    assert numbers["epochs"] == [0, 1, 7]


def test_maps_are_the_values_and_derivatives_of_each_cell(numbers, params_by_epoch, by_grad):
    plane = cell_centres(numbers["cells"])
    values, value_errors = unpacked(numbers, "values")
    derivatives, derivative_errors = unpacked(numbers, "derivatives")
    by_class = (*derivatives.shape[:2], 2, -1)
    derivatives, derivative_errors = (
        array.reshape(by_class) for array in (derivatives, derivative_errors)
    )
    for moment, params in enumerate(params_by_epoch.values()):
        for label in (0, 1):
            targets = jnp.tile(jax.nn.one_hot(label, 2), (len(plane), 1))
            expected_values, expected = by_grad(params, plane, targets)
            assert (abs(values[moment] - expected_values) <= value_errors[moment]).all()
            off = abs(derivatives[moment, :, label] - expected)
            assert (off <= derivative_errors[moment, :, label] + 1e-6).all()
        assert abs(expected).max() > 0.01


def test_examples_have_the_values_and_derivatives_of_their_class(numbers, params_by_epoch, by_grad):
    chosen = jnp.array(numbers["examples"])
    assert {*LABELS[chosen].tolist()} == {0, 1}
    values = read(numbers["numbers"]["example_values"])
    derivatives = read(numbers["numbers"]["example_derivatives"])
    for moment, params in enumerate(params_by_epoch.values()):
        expected_values, expected = by_grad(params, POINTS[chosen], ONE_HOT[chosen])
        assert jnp.allclose(values[moment], expected_values, rtol=1.3e-4, atol=1e-6)  # four digits
        assert jnp.allclose(derivatives[moment], expected, rtol=1.3e-4, atol=1e-7)


def test_weights_and_gradients_are_those_of_the_training_points(numbers, params_by_epoch):
    weights, weight_errors = unpacked(numbers, "weights")
    grads, grad_errors = unpacked(numbers, "weight_grads")

    def rows(tree):
        first, (_, second), _, third = tree
        padded = [
            jnp.concatenate(
                [jnp.pad(p["W"], ((0, 0), (0, 25 - p["W"].shape[1]))), p["b"][:, None]], 1
            )
            for p in (first, second, third)
        ]
        return jnp.concatenate(padded)

    for moment, params in enumerate(params_by_epoch.values()):
        value, expected = jax.value_and_grad(
            lambda params: jnp.mean((fnn.predict(MODEL, params, POINTS) - ONE_HOT) ** 2)
        )(params)
        assert (abs(weights[moment] - rows(params)) <= weight_errors[moment]).all()
        assert (abs(grads[moment] - rows(expected)) <= grad_errors[moment] + 1e-7).all()
        assert numbers["losses"][moment] == pytest.approx(value.item(), rel=1e-4)
        accuracy = fnn.accuracy(fnn.predict(MODEL, params, POINTS), LABELS)
        assert numbers["accuracies"][moment] == pytest.approx(accuracy.item(), rel=1e-4)
        *layers, _ = fnn.trace(MODEL, fnn.MSELoss(), params, POINTS, ONE_HOT)
        norms = numbers["dxNorms"][moment], numbers["gradsNorms"][moment]
        for dx_norm, grads_norm, layer in zip(*norms, layers, strict=True):
            dx = jnp.linalg.norm(layer.dx)
            squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(layer.grads))
            assert dx_norm == pytest.approx(dx.item(), rel=1e-4)
            assert grads_norm == pytest.approx(jnp.sqrt(squares).item(), rel=1e-4)


def test_decisions_are_those_of_the_smallest_loss(numbers, params_by_epoch):
    decisions = read(numbers["numbers"]["decisions"])
    plane = cell_centres(numbers["decisionCells"])
    for moment, params in enumerate(params_by_epoch.values()):
        assert (decisions[moment, 0] == fnn.predict(MODEL, params, plane).argmax(axis=1)).all()
        is_wrong = fnn.predict(MODEL, params, POINTS).argmax(axis=1) != LABELS
        assert numbers["wrong"][moment] == jnp.nonzero(is_wrong)[0].tolist()
        assert 0 < len(numbers["wrong"][moment]) < len(POINTS)


def test_a_layer_tells_its_formula_its_backward_and_what_it_keeps(numbers):
    _, linear, tanh, *_ = numbers["columns"]
    assert linear["formula"].startswith("y = x W^T + b.")
    assert "Raises" not in linear["formula"]
    assert linear["code"].startswith("def backward(params, x, dy):")
    assert "# dy^T x" in linear["code"]
    assert linear["keeps"] == [["x", [30, 2], 240]]
    assert tanh["formula"].startswith("y = tanh(x)")
    assert tanh["code"] == 'return keep_y("Tanh()", jnp.tanh, lambda y, dy: dy * (1 - y) * (1 + y))'
    assert tanh["keeps"] == [["y", [30, 5], 600]]


def Doubled(dim):
    """y = 2 x; dx = 2 dy."""

    def forward(params, x, key=None):
        return 2 * x, jnp.zeros(7)

    def backward(params, residuals, dy):
        return (), 2 * dy  # twice

    return fnn.Layer(lambda key: jnp.ones(3), forward, backward)


def columns_of(*layers, points=POINTS):
    model = fnn.Sequential(*layers)
    text = page(model, {0: model.init(jax.random.key(0))}, points, jnp.zeros(len(points), int))
    return numbers_of(text)["columns"][1:]


def test_a_layer_of_ones_own_is_shown_by_its_own_source():
    (column,) = columns_of(Doubled(2))
    assert column["formula"] == "y = 2 x; dx = 2 dy."
    assert column["code"].splitlines()[-1] == "    return (), 2 * dy  # twice"
    assert column["keeps"] == [["float32", [7], 28]]
    assert not column["weights"]


def test_a_replaced_backward_is_shown_in_place_of_the_old_one():
    def sign_only(params, x, dy):
        """dx = dy sign(W)."""
        grads, _ = linear.backward(params, x, dy)
        return grads, dy @ jnp.sign(params["W"])

    linear = fnn.Linear(2, 2)
    (column,) = columns_of(linear._replace(backward=sign_only))
    assert column["formula"] == "dx = dy sign(W)."
    assert column["code"].startswith("def sign_only")
    assert column["weights"]


def test_a_partial_is_shown_by_the_function_in_it():
    def scaled(factor, params, x, dy):
        """dx = factor dy W."""
        grads, dx = linear.backward(params, x, dy)
        return grads, factor * dx

    linear = fnn.Linear(2, 2)
    (column,) = columns_of(linear._replace(backward=functools.partial(scaled, 3)))
    assert column["formula"] == "dx = factor dy W."
    assert column["code"].startswith("def scaled")


def test_the_sums_of_linear_are_written_out_for_it_alone():
    def like(W, b=None):
        params = {"W": W} if b is None else {"W": W, "b": b}
        backward = lambda params, x, dy: (jax.tree.map(jnp.zeros_like, params), dy)  # noqa: E731
        return fnn.Layer(lambda key: params, lambda params, x, key=None: (x, x), backward)

    linear = fnn.Linear(2, 2)
    layers = [linear, linear._replace(backward=linear.backward), like(jnp.ones((2, 2)))]
    columns = columns_of(*layers, fnn.Linear(2, 2, bias=False))
    assert [column["isLinear"] for column in columns] == [True, False, False, True]
    assert [column["hasBias"] for column in columns] == [True, True, False, False]
    assert [column["weights"] for column in columns] == [True, True, True, True]
    others = [like(3.0), like((jnp.ones(2),)), like(jnp.ones((2, 2, 2)))]
    others += [like(jnp.ones((2, 2)), jnp.ones(1))]
    assert not any(column["weights"] for column in columns_of(*others))


def test_what_has_no_source_is_left_empty():
    namespace = {}
    exec("def backward(params, residuals, dy):\n    return (), dy", namespace)
    layer = fnn.Tanh()._replace(backward=namespace["backward"])
    (column,) = columns_of(layer)
    assert (column["formula"], column["code"]) == ("", "")
    assert columns_of(fnn.remat(fnn.Tanh()))[0]["code"]


def test_of_a_wide_layer_the_first_units_are_drawn():
    columns = columns_of(fnn.Linear(2, 40), fnn.LayerNorm(40), fnn.Linear(40, 30))
    assert [column["width"] for column in columns] == [40, 40, 30]
    assert [column["shown"] for column in columns] == [25, 25, 25]
    assert [column["weights"] for column in columns] == [True, False, True]


def test_other_losses_targets_and_names(text):
    model = fnn.Sequential(fnn.Linear(2, 3))
    params = model.init(jax.random.key(0))
    labels = jnp.arange(30) % 3
    made = page(
        model, {5: params}, POINTS, labels, loss=fnn.CrossEntropyLoss(), targets=jnp.arange(3),
        class_names=["a", "</script><b>", 3],
    )  # fmt: skip
    assert made.count("</script>") == text.count("</script>")
    numbers = numbers_of(made)
    assert numbers["classes"] == ["a", "</script><b>", "3"]
    plane = cell_centres(numbers["decisionCells"])
    expected = fnn.predict(model, params, plane).argmax(axis=1)
    assert (read(numbers["numbers"]["decisions"])[0, 0] == expected).all()
    # One output, and a target that is 0 or 1.
    one = fnn.Sequential(fnn.Linear(2, 1))
    params = one.init(jax.random.key(0))
    targets = [[0.0], [1.0]]
    numbers = numbers_of(
        page(one, {0: params}, POINTS, LABELS, loss=fnn.BCEWithLogitsLoss(), targets=targets)
    )
    right = (fnn.predict(one, params, POINTS)[:, 0] > 0) == (LABELS == 1)
    assert numbers["accuracies"] == [pytest.approx(right.mean().item(), rel=1e-4)]


def test_numbers_far_smaller_than_the_largest_are_kept():
    """A value of 1e-20 has a norm though its square is 0, and 1e-4 of the largest is no 0."""
    model = fnn.Sequential(fnn.Tanh(), fnn.Linear(2, 2))
    params = ((), {"W": jnp.array([[1e-20, 1e-24], [0, 0]]), "b": jnp.zeros(2)})
    numbers = numbers_of(page(model, {0: params}, POINTS, LABELS))
    assert 1e-22 < numbers["dxNorms"][0][0] < 1e-19
    weights, _ = unpacked(numbers, "weights")
    assert jnp.allclose(weights[0, 0, :2], params[1]["W"][0], rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        model = fnn.Sequential(
            fnn.Linear(2, 3, dtype=dtype), fnn.Tanh(), fnn.Linear(3, 2, dtype=dtype)
        )
        params, points = model.init(jax.random.key(0)), POINTS.astype(dtype)
        numbers = numbers_of(page(model, {0: params}, points, LABELS))
        weights, errors = unpacked(numbers, "weights")
        W = params[0]["W"].astype(float)
        assert (abs(weights[0, :3, :2].astype(float) - W) <= errors[0, :3, :2].astype(float)).all()


def test_every_class_has_examples_and_a_title_is_text():
    model, labels = fnn.Sequential(fnn.Linear(2, 2)), (jnp.arange(30) > 25).astype(int)
    made = page(model, {0: model.init(jax.random.key(0))}, POINTS, labels, title="1 < 2 & <b>")
    examples = numbers_of(made)["examples"]
    assert len(examples) == 16
    assert {26, 27, 28, 29} < {*examples}
    assert "<title>1 &lt; 2 &amp; &lt;b&gt;</title>" in made


def test_numbers_that_are_not_finite_are_said(params_by_epoch):
    broken = jax.tree.map(jnp.copy, params_by_epoch[0])
    broken[0]["W"] = broken[0]["W"].at[1].set(jnp.nan)
    with jax.debug_nans(False):
        numbers = numbers_of(page(MODEL, {0: broken}, POINTS, LABELS))
    values, _ = unpacked(numbers, "values")
    assert jnp.isnan(values[0, 3]).all()  # the second unit of the first layer
    assert jnp.isfinite(values[0, 2]).all()
    assert numbers["losses"] == [None]


SPLITS = fnn.Layer(
    lambda key: (),
    lambda params, x, key=None: (x[..., None], ()),
    lambda params, residuals, dy: ((), dy[..., 0]),
    name="splits",
)
JOINS = fnn.Layer(
    lambda key: (),
    lambda params, x, key=None: (x[..., 0], ()),
    lambda params, residuals, dy: ((), dy[..., None]),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": POINTS[:, :1]}, "expected points of shape (n, 2), got (30, 1)"),
        ({"points": POINTS[:0], "labels": LABELS[:0]}, "points of shape (n, 2), got (0, 2)"),
        ({"labels": LABELS[:5]}, "expected an integer label for each point, got"),
        ({"labels": ONE_HOT}, "expected an integer label for each point, got float32"),
        ({"labels": LABELS - 1}, "labels -1 to 0, 2 targets, 2 names"),
        ({"labels": LABELS + 1}, "labels 1 to 2, 2 targets, 2 names"),
        ({"targets": jnp.eye(1)}, "labels 0 to 1, 1 targets"),
        ({"class_names": ["a"]}, "2 targets, 1 names"),
        ({"loss": fnn.MSELoss("none")}, "page: expected a loss value of shape (), such as a sum"),
        ({"params_by_epoch": {}}, "expected the params of an epoch, got none"),
        ({"corners": ((0, 0), (1, 0))}, "expected a lower left and an upper right corner, got [[0"),
        (
            {"model": fnn.Sequential(), "params_by_epoch": {0: ()}},
            "expected a model with a layer, got Identity()",
        ),
        (
            {"model": fnn.Sequential(SPLITS, JOINS), "params_by_epoch": {0: ((), ())}},
            "y of shape (..., features) from layer 0, splits, got (30, 2, 1) for x (30, 2)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, message, params_by_epoch):
    arguments = {
        "model": MODEL, "params_by_epoch": params_by_epoch, "points": POINTS, "labels": LABELS
    }  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(message)):
        page(**arguments | change)


def test_the_epochs_kept_are_about_sixty_and_denser_at_the_start():
    kept = epochs_to_keep(150, 1427)
    assert kept[:5] == [0, 1, 2, 3, 4]
    assert kept[-1] == 150
    assert 55 < len(kept) <= 64
    gaps = [later - earlier for earlier, later in itertools.pairwise(kept)]
    assert sum(gaps[:20]) < sum(gaps[-20:]) / 2
    assert epochs_to_keep(1, 10) == [0, 1]
    assert len(epochs_to_keep(10**6, 5 * 10**6)) == 4


def test_a_page_of_many_epochs_and_units_stays_small():
    model = fnn.Sequential(*[fnn.Linear(2, 200), fnn.Tanh(), fnn.Linear(200, 2)] * 3)
    params = jax.jit(model.init)(jax.random.key(0))
    text = page(model, dict.fromkeys(range(500), params), POINTS, LABELS)
    numbers = numbers_of(text)
    assert len(text) < 3e6
    assert 40 < len(numbers["epochs"]) <= 64
    assert numbers["epochs"][-1] == 499


def test_a_page_that_is_too_large_is_made_again_with_coarser_maps(
    text, params_by_epoch, monkeypatch
):
    most = len(text) - 1000
    monkeypatch.setattr(page_module, "MOST_LETTERS", most)
    smaller = page(MODEL, params_by_epoch, POINTS, LABELS)
    assert numbers_of(smaller)["cells"] < numbers_of(text)["cells"]
    assert len(smaller) <= most


class Reader(html.parser.HTMLParser):
    """Collects the tags that are open, and all attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert len({*reader.ids}) == len(reader.ids)
    assert not [name for name, _ in reader.attributes if name in ("src", "href")]
    assert "{{" not in text.replace("={{", "")
    assert "<title>A title</title>" in text
    code = text[text.index('"use strict"') :]
    assert {*re.findall(r'(?:element|getElementById)\("([\w-]+)"\)', code)} <= {*reader.ids}
    assert not re.search(r"\b(fetch|import|XMLHttpRequest)\b *\(", code)


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine to run the page in")
def test_a_browser_draws_the_page(text, numbers, params_by_epoch, tmp_path):
    (tmp_path / "page.html").write_text(text)
    link = f"file://{tmp_path}/page.html#epoch=1&backward&example=2&layer=1.1"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    profile = f"--user-data-dir={tmp_path}/profile"
    command = [CHROMIUM, *options, profile, "--force-prefers-reduced-motion", "--dump-dom", link]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "epoch 1 of 7, loss " in shown
    assert "Layer 1.1: Linear(5, 3)" in shown
    (value,) = re.findall(r"sum over j of W\[0, j\] x\[j\].* = (\S+)</p><p>", shown)
    (derivative,) = re.findall(r"Backward, layer 2, ReLU\(\):</b> dx\[0\] = (\S+), where", shown)
    example = numbers["examples"][2]
    expected = values_and_derivatives(params_by_epoch[1], POINTS[example], ONE_HOT[example])
    for number, of_units in zip((value, derivative), expected, strict=True):
        unit = 2 + 5 + 5  # x, Linear(2, 5) and Tanh() come before
        assert float(number.replace("\u2212", "-")) == pytest.approx(
            of_units[unit].item(), rel=1e-3
        )
