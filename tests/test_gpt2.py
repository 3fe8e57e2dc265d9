"""GPT-2 in fnn's layers gives what tests/record_gpt2.py recorded from transformers, in float64."""

import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import pytest
import record_gpt2
from cases import numpy_array
from record_gpt2 import CONTEXT, DIM, HEADS, LAYERS, SIZE
from shared.gpt2 import from_gpt2, make_gpt2

import fnn

RECORD = json.loads((pathlib.Path(__file__).parent / "data" / "gpt2.json").read_text())
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def model():
    return make_gpt2(SIZE, layers=LAYERS, dim=DIM, heads=HEADS, context=CONTEXT)


@pytest.fixture(scope="module")
def state_dict():
    drawn = record_gpt2.draw_state_dict()
    return {name: numpy_array(numbers, "float64") for name, numbers in drawn.items()}


def test_fnn_gives_the_logits_loss_and_gradients_of_transformers(model, state_dict):
    loss = fnn.CrossEntropyLoss()

    @jax.jit
    def passes(params, tokens):
        logits, residuals = model.forward(params, tokens[:, :-1])
        value, kept = loss.forward(logits, tokens[:, 1:])
        return logits, value, model.backward(params, residuals, loss.backward(kept))[0]

    with jax.enable_x64(True):
        tokens = numpy_array(record_gpt2.draw_tokens(), "int32")
        logits, value, grads = jax.device_get(passes(from_gpt2(state_dict), tokens))
    assert logits.dtype == "float64"
    largest = max(map(abs, RECORD["logits"]))
    assert logits.ravel().tolist() == pytest.approx(
        RECORD["logits"], rel=0, abs=TOLERANCE * largest
    )
    assert value == pytest.approx(RECORD["loss"], rel=TOLERANCE)
    for leaf, recorded in zip(jax.tree.leaves(grads), RECORD["grads"], strict=True):
        close = pytest.approx(recorded, rel=0, abs=TOLERANCE * recorded[0])
        assert record_gpt2.digest(leaf) == close


def test_the_parameters_are_those_of_the_model(model, state_dict):
    like = jax.eval_shape(model.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes(from_gpt2(state_dict), like)


def test_names_without_transformer_and_names_of_buffers_are_taken_too(state_dict):
    """As in the file of the published parameters, which has masks as well."""
    names = {name.removeprefix("transformer."): array for name, array in state_dict.items()}
    masks = {"h.0.attn.bias": jnp.ones((1, 1, 16, 16)), "lm_head.weight": names["wte.weight"]}
    chex.assert_trees_all_equal(from_gpt2(names | masks), from_gpt2(state_dict))


def test_the_published_model_has_124_million_parameters():
    params = jax.eval_shape(make_gpt2().init, jax.random.key(0))
    assert fnn.count_params(params) == 124_439_808
