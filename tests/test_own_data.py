"""Tables and images of one's own: what a reader writes, in at most 15 lines each."""

import jax
import jax.numpy as jnp
from cases import draw, draw_integers

import fnn


def test_a_table_of_three_classes():
    centers = 3 * draw(9, (3, 4))
    labels = draw_integers(1, (150,), 3)
    x = centers[labels] + draw(2, (150, 4))

    train, test = fnn.split(jax.random.key(0), x, labels, fraction=0.2)
    scale = fnn.Standardize(*fnn.standardize(train[0]))
    model = fnn.Sequential(scale, fnn.Linear(4, 16), fnn.ReLU(), fnn.Linear(16, 3))
    result = fnn.fit(
        model, fnn.CrossEntropyLoss(), lambda steps: fnn.adam(fnn.cosine_decay(0.02, steps)),
        *train, epochs=40, batch_size=10, key=jax.random.key(1), validation=0.1,
        metrics={"accuracy": fnn.accuracy}, progress=False,
    )  # fmt: skip
    assert fnn.accuracy(fnn.predict(model, result.params, test[0]), test[1]) > 0.9
    assert result.history[-1]["validation_accuracy"] > 0.8


def test_a_table_of_two_classes():
    x = draw(1, (200, 5)) * jnp.array([[1.0, 10.0, 0.1, 1.0, 100.0]]) + 7
    labels = (jnp.sum(fnn.Standardize(*fnn.standardize(x)).forward((), x)[0], -1) > 0).astype(float)

    train, test = fnn.split(jax.random.key(0), x, labels[:, None], fraction=0.2)
    scale = fnn.Standardize(*fnn.standardize(train[0]))
    model = fnn.Sequential(scale, fnn.Linear(5, 16), fnn.ReLU(), fnn.Linear(16, 1))
    result = fnn.fit(
        model, fnn.BCEWithLogitsLoss(), lambda steps: fnn.adam(fnn.cosine_decay(0.02, steps)),
        *train, epochs=40, batch_size=10, key=jax.random.key(1),
        metrics={"accuracy": fnn.accuracy}, progress=False,
    )  # fmt: skip
    assert fnn.accuracy(fnn.predict(model, result.params, test[0]), test[1]) > 0.9


def test_a_table_of_numbers():
    x = draw(1, (200, 3))
    target = 3 * jnp.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:]

    train, test = fnn.split(jax.random.key(0), x, target, fraction=0.2)
    scale = fnn.Standardize(*fnn.standardize(train[0]))
    model = fnn.Sequential(scale, fnn.Linear(3, 32), fnn.Tanh(), fnn.Linear(32, 1))
    result = fnn.fit(
        model, fnn.MSELoss(), lambda steps: fnn.adam(fnn.cosine_decay(0.03, steps)),
        *train, epochs=80, batch_size=10, key=jax.random.key(1), validation=0.1,
        metrics={"r2": fnn.r2_score}, patience=40, progress=False,
    )  # fmt: skip
    assert fnn.r2_score(fnn.predict(model, result.params, test[0]), test[1]) > 0.8


def test_images():
    labels = draw_integers(1, (120,), 2)
    bars = jnp.zeros((2, 6, 6, 1)).at[0, 2].set(3.0).at[1, :, 2].set(3.0)
    images = bars[labels] + draw(2, (120, 6, 6, 1))

    train, test = fnn.split(jax.random.key(0), images, labels, fraction=0.2)
    scale = fnn.Standardize(*fnn.standardize(train[0]))
    model = fnn.Sequential(
        scale, fnn.Conv2d(1, 4, 3), fnn.ReLU(), fnn.MaxPool2d(2), fnn.Flatten(),
        fnn.Dropout(0.2), fnn.Linear(16, 2),
    )  # fmt: skip
    result = fnn.fit(
        model, fnn.CrossEntropyLoss(), fnn.adam(0.02), *train, epochs=10, batch_size=10,
        key=jax.random.key(1), metrics={"accuracy": fnn.accuracy}, progress=False,
    )  # fmt: skip
    assert fnn.accuracy(fnn.predict(model, result.params, test[0]), test[1]) > 0.9
