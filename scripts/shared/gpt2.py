"""GPT-2 in fnn's layers. Radford et al., 2019."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from shared import text

import fnn


def make_gpt2(
    size: int = 50257, *, layers: int = 12, dim: int = 768, heads: int = 12, context: int = 1024
) -> fnn.Layer:
    """transformers.GPT2LMHeadModel without its dropout. The defaults are those of "gpt2".

    Shapes: tokens x (..., time) with time <= context, logits y (..., time, size).
    """
    sizes = {"layers": layers, "dim": dim, "heads": heads, "context": context}
    return text.make_gpt(size, **sizes, gelu="tanh")


def from_gpt2(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The params of make_gpt2 from the state_dict of transformers.GPT2LMHeadModel, as arrays.

    Names there may begin with "transformer."; i is the number of a block, from 0. In the params
    body[1 + 2 * i] is block i's attention, and body[2 + 2 * i] its network:

        wte.weight                  W                       also the last map; lm_head.weight
        wpe.weight                  body[0]["W"]            positions
        h.i.ln_1                    body[1 + 2 * i][0]
        h.i.attn.c_attn             body[1 + 2 * i][1][0]   queries, keys and values
        h.i.attn.c_proj             body[1 + 2 * i][1][2]
        h.i.ln_2                    body[2 + 2 * i][0]
        h.i.mlp.c_fc                body[2 + 2 * i][1]
        h.i.mlp.c_proj              body[2 + 2 * i][3]
        ln_f                        body[-1]

    A norm's weight is "scale" here. The other maps have weight (in, out) there, and W (out, in)
    here. For example, where transformers is installed:

        import transformers
        tensors = transformers.GPT2LMHeadModel.from_pretrained("gpt2").state_dict()
        params = from_gpt2({name: tensor.numpy() for name, tensor in tensors.items()})
        logits = fnn.predict(make_gpt2(), params, tokens)

    Raises:
        KeyError: a name is missing.
    """
    arrays = {
        name.removeprefix("transformer."): jnp.asarray(array) for name, array in state_dict.items()
    }

    def norm(name):
        return {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}

    def linear(name):
        return {"W": arrays[f"{name}.weight"].T, "b": arrays[f"{name}.bias"]}

    body: list[Any] = [{"W": arrays["wpe.weight"]}]
    while f"h.{len(body) // 2}.ln_1.weight" in arrays:
        block = f"h.{len(body) // 2}"
        attention = linear(f"{block}.attn.c_attn"), (), linear(f"{block}.attn.c_proj")
        body.append((norm(f"{block}.ln_1"), attention))
        network = linear(f"{block}.mlp.c_fc"), (), linear(f"{block}.mlp.c_proj")
        body.append((norm(f"{block}.ln_2"), *network))
    return {"W": arrays["wte.weight"], "body": (*body, norm("ln_f"))}
