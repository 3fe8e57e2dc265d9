# /// script
# requires-python = ">=3.11"
# dependencies = ["fnn", "jax", "torch"]
#
# [tool.uv.sources]
# fnn = { path = "..", editable = true }
# ///
r"""Train the GPT of train_text.py in fnn and in PyTorch, from the same parameters and batches.

In 20 steps no parameter is more than 3e-5 apart in float32, and 5e-14 in
float64:

  compare_gpt.py
  compare_gpt.py --dtype float64

After 800 steps of 4 blocks of width 128, fnn's predicts the last tenth of the
text with 2.0189 bits a character, and PyTorch's with 2.0194:

  compare_gpt.py --layers 4 --dim 128 --steps 800 --batch-size 32 \
      --learning-rate 0.002

A step of these blocks with 32 windows of 128 characters takes 200 ms in fnn. In
PyTorch eager it takes 164 ms with two threads, and 289 ms with one. These are
medians of 15 rounds on two idle cores:

  compare_gpt.py --layers 4 --dim 128 --context 128 --batch-size 32 --rounds 15

By jax.grad of the same forward, the gradient takes 1.3 times as long as by
hand. This program does not measure that.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -I does not look there
from shared.interrupts import die_of_interrupts

if __name__ == "__main__":
    die_of_interrupts()  # until run handles them

import functools
import math

import jax
import jax.numpy as jnp
from shared import command_line, pytorch, text
from shared.command_line import Parser, layer_width, leave, nonnegative_float, positive_int, tell
from shared.measure import Table, measure

import fnn

BETAS = 0.9, 0.99  # of Adam


def parse_options(arguments=None):
    parser = Parser(
        "Train the GPT of train_text.py in fnn and in PyTorch on the CPU, from the same initial "
        "parameters on the same windows of Python's own documentation. Print by how much the "
        "parameters differ after each step, what both predict of the last tenth of the text, and "
        "how long a step takes. Both have Adam with decoupled weight decay, and neither dropout "
        "nor clipping.",
        __doc__,
    )
    option = parser.add_argument
    option("--layers", type=layer_width, default=2, help="blocks of attention and a GELU network")
    option("--dim", type=layer_width, default=64, help="features of a character")
    option("--heads", type=layer_width, default=4, help="of attention, in each block")
    option("--context", type=layer_width, default=64, help="characters that the model sees at once")
    option("--batch-size", type=positive_int, default=16, help="windows of the text a step")
    option("--steps", type=positive_int, default=20, help="of training in both frameworks")
    option("--learning-rate", type=nonnegative_float, default=0.001, help="of Adam")
    option("--weight-decay", type=nonnegative_float, default=0.1, help="of Adam, decoupled")
    help = "of Adam; in float32 a much smaller one makes whole steps from rounding errors"
    option("--eps", type=nonnegative_float, default=1e-5, help=help)
    option("--dtype", choices=("float32", "float64"), default="float32", help="of all arithmetic")
    option("--seed", type=command_line.seed, default=0, help="of parameters and batches")
    help = "of the last tenth of the text, for validation"
    option("--windows", type=positive_int, default=500, help=help)
    option("--rounds", type=positive_int, default=20, help="measurements of a step's time")
    option("--compile", action="store_true", help="measure torch.compile too")
    options = parser.parse_args(arguments)
    if options.dim % options.heads:
        dims = f"{options.dim} features and {options.heads} heads"
        parser.error(f"argument --heads: expected heads that divide the features, got {dims}")
    parser.check_most("steps", options.steps * options.batch_size, 10**8, "10^8 windows")
    pytorch.require_pytorch(parser)
    return options


def compare(options):
    """Train in both frameworks, and report. Returns the exit status.

    The bias of the keys adds the same number to all scores of a query. So its derivatives are 0 but
    for rounding errors, and Adam with an eps of 1e-8 makes whole steps from these in float32.
    Therefore the default of --eps is larger.
    """
    with jax.default_device("cpu"), jax.enable_x64(options.dtype == "float64"):
        model, step, state, batches, windows = start(options)
        sizes = f"{options.layers} layers, {options.dim} features, {options.heads} heads"
        print(
            f"GPT: {sizes}, {fnn.count_params(state.params):,} parameters; {options.dtype}; "
            f"seed {options.seed}\n"
            f"batches of {options.batch_size} windows of {options.context} characters\n"
            f"Adam: learning rate {options.learning_rate:g}, weight decay "
            f"{options.weight_decay:g}, eps {options.eps:g}\n\n"
            f"step  fnn's loss  PyTorch's loss  largest relative difference of the parameters"
        )
        network, optimizer = start_torch(options, state.params)
        torch_step = functools.partial(pytorch.train_gpt_step, optimizer)
        largest = 0.0
        for number, (x, target) in enumerate(batches, 1):
            state, ours = step(state, x, target)
            ours, theirs = ours.item(), torch_step(network, *pytorch.tokens((x, target))).item()
            difference = difference_of(state.params, network)
            largest = max(largest, difference)
            print(f"{number:4}  {ours:10.6f}  {theirs:14.6f}  {difference:27.2e}", flush=True)
            if not (math.isfinite(ours) and math.isfinite(theirs)):
                tell("losses are not finite: lower --learning-rate")
                return 1
        print(f"largest difference: {largest:.2e}")
        bits = jax.jit(functools.partial(text.evaluate, model))(state.params, windows)[0].item()
        (torch_windows,) = pytorch.tokens([windows])
        theirs = pytorch.evaluate_gpt(network, torch_windows) / math.log(2)
        print(f"validation: {bits:.4f} bits per character in fnn, {theirs:.4f} in PyTorch")
        measure(make_table(options, step, state, torch_step, network, batches[-1]), options.rounds)
    return 0


def size_of(options):
    return {name: vars(options)[name] for name in ("layers", "dim", "heads", "context")}


def start(options):
    """fnn's model and step, its first state, the batches, and windows for validation."""
    whole = text.read([])
    vocabulary = "".join(sorted({*whole}))
    tokens = text.encode(whole, vocabulary)
    tokens, held_out = jnp.split(tokens, [len(tokens) - len(tokens) // 10])
    windows = text.consecutive_windows(held_out, options.context)[: options.windows]
    model = text.make_gpt(len(vocabulary), **size_of(options))
    optimizer = fnn.adam(options.learning_rate, *BETAS, options.eps, options.weight_decay)

    @jax.jit
    def draw(seed, tokens):
        init_key, key = jax.random.split(jax.random.key(seed))
        params = jax.tree.map(lambda leaf: leaf.astype(options.dtype), model.init(init_key))
        numbers = jnp.arange(options.steps * options.batch_size)
        windows = text.draw_windows(tokens, numbers, key, options.context)
        batches = [part.reshape(options.steps, -1, options.context) for part in windows]
        return fnn.TrainState(params, optimizer.init(params)), batches

    state, batches = draw(jnp.uint32(options.seed), tokens)
    step = fnn.make_train_step(model, fnn.CrossEntropyLoss(), optimizer)
    return model, step, state, [*zip(*batches, strict=True)], windows


def start_torch(options, params):
    """PyTorch's network with these params, and its optimizer."""
    torch = pytorch.import_torch()
    network = pytorch.make_gpt(len(params["W"]), **size_of(options))
    weights = pytorch.tensors(jax.tree.leaves(params))
    for parameter, weight in zip(pytorch.gpt_leaves(network), weights, strict=True):
        parameter.data = weight
    rule = {"betas": BETAS, "eps": options.eps, "weight_decay": options.weight_decay}
    return network, torch.optim.AdamW(network.parameters(), options.learning_rate, **rule)


def difference_of(params, network):
    """The largest difference of a parameter, relative to the largest number in its array."""
    pairs = zip(jax.tree.leaves(params), pytorch.gpt_leaves(network), strict=True)
    arrays = [(jax.device_get(ours), theirs.detach().numpy()) for ours, theirs in pairs]
    return max(abs(a - b).max().item() / (abs(b).max().item() or 1.0) for a, b in arrays)


def make_table(options, step, state, torch_step, network, batch):
    """A step in each framework, for shared.measure."""
    torch, torch_batch, cores = pytorch.import_torch(), pytorch.tokens(batch), os.cpu_count()
    settings = {f"{n} thread{'s' * (n > 1)}": (n, network) for n in sorted({1, cores})}
    if options.compile:
        settings[f"torch.compile, {cores} threads"] = cores, torch.compile(network)
    candidates = {"fnn": lambda: step(state, *batch)}
    for name, (threads, callable_network) in settings.items():

        def call(threads=threads, network=callable_network):
            torch.set_num_threads(threads)
            torch_step(network, *torch_batch)

        try:
            call()
        except Exception as error:
            print(f"PyTorch, {name} does not work here: {type(error).__name__}")
        else:
            candidates[f"PyTorch, {name}"] = call
    return Table("A step of training", "a step", candidates)


def main(arguments=None):
    options = parse_options(arguments)
    return command_line.run(compare, options)


if __name__ == "__main__":
    leave(main())
