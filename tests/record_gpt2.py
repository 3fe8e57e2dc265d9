"""Write what transformers' GPT-2 computes, in float64, for the test of shared.gpt2.

Run it where fnn, PyTorch and transformers are installed ('pip install torch transformers' installs
the latter two): PYTHONPATH=scripts python tests/record_gpt2.py FILE

The file holds the logits, the loss, and the norm and a weighted sum of each array of derivatives,
for parameters and tokens that are drawn here. The model has no dropout.
"""

import json
import math
import pathlib
import random

import jax
from shared.command_line import Parser, leave, run
from shared.gpt2 import from_gpt2
from shared.pytorch import import_torch, require_pytorch

from fnn.files import write_text

SIZE, LAYERS, DIM, HEADS, CONTEXT = 50, 2, 64, 4, 16
BATCH, TIME = 2, 11


def parse_options(arguments=None):
    parser = Parser("Write what transformers' GPT-2 computes; the tests hold fnn to it.")
    parser.add_argument("file", type=pathlib.Path, help="the JSON file to write")
    options = parser.parse_args(arguments)
    require_pytorch(parser)
    parser.check_output(options.file.parent, [options.file.name], "file")
    return options


def draw(seed, *shape, center=0.0, bound=1.0):
    """Nested lists of numbers. Python gives the same ones for a seed in every version."""
    generator = random.Random(seed)

    def nested(shape):
        if not shape:
            return center + bound * (2 * generator.random() - 1)
        return [nested(shape[1:]) for _ in range(shape[0])]

    return nested(shape)


def draw_tokens():
    """Tokens (BATCH, TIME + 1). Each is the target of those before it."""
    return [
        [int(SIZE * part) for part in row]
        for row in draw("tokens", BATCH, TIME + 1, center=0.5, bound=0.5)
    ]


def draw_state_dict():
    """Parameters by transformers' names, as nested lists, with which no layer is near linear."""
    maps = {
        "attn.c_attn": (DIM, 3 * DIM),
        "attn.c_proj": (DIM, DIM),
        "mlp.c_fc": (DIM, 4 * DIM),
        "mlp.c_proj": (4 * DIM, DIM),
    }
    state_dict = {"wte.weight": draw("wte", SIZE, DIM), "wpe.weight": draw("wpe", CONTEXT, DIM)}
    for block in (f"h.{number}" for number in range(LAYERS)):
        for name, shape in maps.items():
            name = f"{block}.{name}"
            state_dict[f"{name}.weight"] = draw(name, *shape, bound=math.sqrt(3 / shape[0]))
            state_dict[f"{name}.bias"] = draw(f"{name}.bias", shape[1], bound=0.25)
    for name in ("ln_f", *(f"h.{n}.{norm}" for n in range(LAYERS) for norm in ("ln_1", "ln_2"))):
        state_dict[f"{name}.weight"] = draw(name, DIM, center=1.0, bound=0.25)
        state_dict[f"{name}.bias"] = draw(f"{name}.bias", DIM, bound=0.25)
    return {f"transformer.{name}": numbers for name, numbers in state_dict.items()}


def digest(array):
    """[norm, weighted sum] of an array of derivatives."""
    numbers = array.ravel().tolist()
    weights = draw("weights", len(numbers))
    return [math.hypot(*numbers), math.fsum(a * b for a, b in zip(numbers, weights, strict=True))]


def record(options):
    """Write the results. Returns the exit status."""
    import transformers

    torch = import_torch()
    torch.set_num_threads(1)
    sizes = {"n_layer": LAYERS, "n_embd": DIM, "n_head": HEADS, "n_positions": CONTEXT}
    dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"))  # the default is above SIZE
    config = transformers.GPT2Config(vocab_size=SIZE, **sizes, **dropout, **ends)
    model = transformers.GPT2LMHeadModel(config).double().train()
    weights = {name: torch.tensor(rows, dtype=float) for name, rows in draw_state_dict().items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    model.load_state_dict(weights)  # raises unless the names and the shapes are the model's
    tokens = torch.tensor(draw_tokens())
    logits = model(tokens[:, :-1]).logits
    # The model's own loss is in float32.
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    own = model(tokens, labels=tokens).loss
    assert abs(own - loss) < 1e-5 * loss, f"{own} is not {loss}"
    with jax.enable_x64(True):
        grads = from_gpt2({name: p.grad.numpy() for name, p in model.named_parameters()})
        grads = [digest(leaf) for leaf in jax.tree.leaves(grads)]
    recorded = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "logits": logits.flatten().tolist(),
        "loss": loss.item(),
        "grads": grads,
    }
    write_text(options.file, json.dumps(recorded) + "\n")
    return 0


def main(arguments=None):
    return run(record, parse_options(arguments))


if __name__ == "__main__":
    leave(main())
