"""Text as numbers of characters, and models that predict the next character."""

import functools
import math
import pathlib
from collections.abc import Sequence
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal
from shared.command_line import UserError

import fnn

EVALUATED_AT_ONCE = 8192  # tokens


def read(paths: Sequence[pathlib.Path]) -> str:
    """The text of the files, joined; without files, Python's own documentation.

    Raises:
        UserError: a file cannot be read, is not UTF-8 or is empty.
    """
    texts = []
    for path in paths:
        try:
            texts.append(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            got = f"the byte {error.object[error.start]:#04x} at {error.start}"
            raise UserError(f"{path}: expected text in UTF-8, got {got}") from None
        if not texts[-1]:
            raise UserError(f"{path}: expected text, got an empty file")
    return "".join(texts) if paths else "\n".join(topics[name] for name in sorted(topics))


def encode(text: str, vocabulary: str) -> jax.Array:
    """The number of each character in the vocabulary: bytes, if it has at most 256."""
    numbers = {ord(character): number for number, character in enumerate(vocabulary)}
    code = text.translate(numbers).encode("utf-32-le", "surrogatepass")
    size = len(vocabulary)
    dtype = jnp.uint8 if size <= 2**8 else jnp.uint16 if size <= 2**16 else jnp.int32
    return jnp.frombuffer(code, jnp.int32).astype(dtype)


def encode_prompt(prompt: str, vocabulary: str) -> jax.Array:
    """The prompt's tokens. An empty one stands for the start of a line.

    Raises:
        UserError: the prompt has a character that the vocabulary lacks.
    """
    unknown = sorted({*prompt} - {*vocabulary})
    if unknown:
        got = ", ".join(map(repr, unknown))
        raise UserError(f"argument --prompt: expected characters of the text, got {got}")
    return encode(prompt or ("\n" if "\n" in vocabulary else vocabulary[0]), vocabulary)


def draw_windows(tokens: jax.Array, numbers: jax.Array, key: jax.Array, context: int):
    """x and target (n, context): windows of the text, and the same windows one token later.

    The start of window number i is drawn from fold_in(key, i). So it does not depend on the number
    of devices among which the numbers (n,) are divided.
    """

    def draw(number):
        return jax.random.randint(jax.random.fold_in(key, number), (), 0, len(tokens) - context)

    windows = _windows_at(tokens, jax.vmap(draw)(numbers), context)
    return windows[:, :-1], windows[:, 1:]


def consecutive_windows(tokens: jax.Array, context: int) -> jax.Array:
    """Windows (n, context + 1). Each begins with the last token of the one before."""
    return _windows_at(tokens, jnp.arange((len(tokens) - 1) // context) * context, context)


def _windows_at(tokens, starts, context):
    return tokens[starts[:, None] + jnp.arange(context + 1)[None]]


def evaluate(model: fnn.Layer, params, windows: jax.Array) -> jax.Array:
    """The mean of -log2 p(next character), and the accuracy, over windows (n, context + 1).

    Each window is predicted by itself, from its second character on, and a few at a time.
    """

    def score(params, windows, key=None):
        def of_one(window):
            logits, target = fnn.predict(model, params, window[:-1]), window[1:]
            nats, _ = fnn.CrossEntropyLoss().forward(logits, target)
            return jnp.stack([nats / math.log(2), fnn.accuracy(logits, target)])

        return jax.vmap(of_one)(windows), ()

    # predict divides the windows into batches. It gets a model whose y are the scores.
    at_once = max(1, EVALUATED_AT_ONCE // windows.shape[1])
    scores = fnn.predict(model._replace(forward=score), params, windows, batch_size=at_once)
    return jnp.mean(scores, axis=0)


def sample(model, params, key, prompt, *, length, context, temperature, top_k) -> jax.Array:
    """The tokens (length,) that follow the prompt (n,), each drawn from what the model predicts.

    The model sees the last `context` tokens, and computes all of them anew for each that it adds.
    A token is drawn in proportion to p^(1 / temperature), from the top_k most likely ones alone if
    top_k is not None. With temperature 0 it is the most likely one.
    """
    prompt = prompt[-context:]
    window = jnp.zeros(context, prompt.dtype).at[: len(prompt)].set(prompt)  # its end is empty

    def add(state, number):
        window, end = state
        logits = fnn.predict(model, params, window)[end - 1]
        best, candidates = jax.lax.top_k(logits, min(top_k or logits.size, logits.size))
        chosen = 0
        if temperature:
            exponents = (best - best[0]) / temperature
            chosen = jax.random.categorical(jax.random.fold_in(key, number), exponents)
        token = candidates[chosen].astype(window.dtype)
        window = jnp.where(end == context, jnp.roll(window, -1), window)
        end = jnp.minimum(end + 1, context)
        return (window.at[end - 1].set(token), end), token

    return jax.lax.scan(add, (window, jnp.asarray(len(prompt))), jnp.arange(length))[1]


def Tied(num_embeddings: int, dim: int, body: fnn.Layer) -> fnn.Layer:
    """y = body(W[x]) W^T: the same W is the first map and the last. Press and Wolf, 2017.

    W is used twice, so it has two paths to the loss, and their derivatives add up.

    It shows how to write a combinator: forward and backward call those of the layers in it. With
    layers and rebuild it can be looked into, by print, summary and the transforms.

    Shapes: x (...) of an integer dtype, y (..., num_embeddings); body (..., dim) to (..., dim);
    params {"W": (num_embeddings, dim), "body": the body's}. Residuals: those of the three layers.
    """
    embedding = fnn.Embedding(num_embeddings, dim, weight_init=normal(0.02))
    output = fnn.Linear(dim, num_embeddings, bias=False)

    def init(key):
        first_key, body_key = jax.random.split(key)
        return embedding.init(first_key) | {"body": body.init(body_key)}

    def forward(params, x, key=None):
        W = {"W": params["W"]}
        x, first = embedding.forward(W, x)
        x, inside = body.forward(params["body"], x, key)
        y, last = output.forward(W, x)
        return y, (first, inside, last)

    def backward(params, residuals, dy):
        W, (first, inside, last) = {"W": params["W"]}, residuals
        last_grads, dy = output.backward(W, last, dy)
        body_grads, dy = body.backward(params["body"], inside, dy)
        first_grads, dx = embedding.backward(W, first, dy)
        return {"W": first_grads["W"] + last_grads["W"], "body": body_grads}, dx

    rebuild = functools.partial(Tied, num_embeddings, dim)
    return fnn.Layer(init, forward, backward, layers=(body,), rebuild=rebuild)


def make_gpt(
    size, *, layers, dim, heads, context, dropout=0, untied=False, gelu="none"
) -> fnn.Layer:
    """Blocks of causal attention and a GELU network, as in GPT-2. Radford et al., 2019.

    GPT-2 itself has gelu="tanh". See shared.gpt2.
    """
    drop = [fnn.Dropout(dropout)] if dropout else []

    def block(*inside):
        return fnn.Residual(fnn.Sequential(fnn.LayerNorm(dim), *inside, *drop))

    attention = block(fnn.MultiHeadAttention(dim, heads, causal=True))
    network = block(fnn.Linear(dim, 4 * dim), fnn.GELU(gelu), fnn.Linear(4 * dim, dim))
    blocks = [attention, network] * layers
    body = fnn.PositionalEmbedding(context, dim), *drop, *blocks, fnn.LayerNorm(dim)
    if untied:
        return fnn.Sequential(fnn.Embedding(size, dim), *body, fnn.Linear(dim, size))
    return Tied(size, dim, fnn.Sequential(*body))


def make_lstm(size, *, layers, dim, heads, context, dropout, untied) -> fnn.Layer:
    """LSTM layers, with Dropout before each and before the last map."""
    drop = [fnn.Dropout(dropout)] if dropout else []
    body = [*drop, fnn.LSTM(dim, dim)] * layers
    return fnn.Sequential(fnn.Embedding(size, dim), *body, *drop, fnn.Linear(dim, size))


MODELS = {"gpt": make_gpt, "lstm": make_lstm}
