"""Train a model on text to predict the next character, and let it write text.

  train_text.py
  train_text.py --model lstm --output runs/lstm
  train_text.py --sample 500 --from runs/text/params.npz --prompt "The class "

Bits per character of the last tenth of Python's own documentation:

  gpt   4 blocks of width 128, context 64, W tied  1.634  5 minutes, 2 CPU cores
  lstm  2 layers of width 256                      1.651

Each is one run with the defaults: seed 0, 4000 steps of 32 windows, Adam with a
rate of 0.004 at its highest, and dropout 0.1. The rate was chosen on the same
last tenth. Windows of 64 characters are predicted each by itself.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -I does not look there
from shared.interrupts import die_of_interrupts

if __name__ == "__main__":
    die_of_interrupts()  # until training.run handles them

import argparse
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
from shared import command_line, distributed, figures, text, training
from shared.command_line import Parser, UserError, layer_width, nonnegative_float, positive_int
from shared.figures import Curve

import fnn
from fnn.files import write_text

FIGURES = ["curves.svg"]
CHARACTERS_AT_CHECKPOINT = 500
SIZES = {"gpt": {"layers": 4, "dim": 128}, "lstm": {"layers": 2, "dim": 256}}  # by default
# What makes the model, beside the vocabulary. params.npz says these.
MODEL = ["model", "layers", "dim", "heads", "context", "dropout", "untied"]


def parse_options(arguments=None):
    parser = Parser(
        "Train a model to predict the next character of a text, and let it write. The text is "
        "Python's own documentation, or the files of --data. Its last tenth is for validation. A "
        "sample of what the model writes is stored with every checkpoint, and printed at the end. "
        "With --sample nothing is trained: the model in --from writes.",
        __doc__,
    )
    option = parser.add_argument
    rate = "of Adam, at its highest; it rises first, and falls to 0 along half a cosine"
    file = {"type": pathlib.Path, "metavar": "FILE"}
    help = "text files in UTF-8, joined (default: Python's own documentation)"
    option("--data", **file, nargs="+", default=argparse.SUPPRESS, help=help)
    option("--model", choices=text.MODELS, default="gpt", help="attention, or recurrent")
    size = {"type": layer_width, "default": argparse.SUPPRESS}
    option("--layers", **size, help="blocks of gpt (default: 4), or layers of lstm (default: 2)")
    option("--dim", **size, help="features of a character (default: gpt 128, lstm 256)")
    option("--heads", type=layer_width, default=4, help="of attention, in each block")
    option("--context", type=layer_width, default=64, help="characters that the model sees at once")
    option("--untied", action="store_true", help="gpt: a last map apart from the embedding")
    share = {"type": command_line.fraction}
    option("--dropout", **share, default=0.1, help="share of the features dropped")
    option("--seed", type=command_line.seed, default=0, help="of parameters, batches and samples")
    option("--epochs", type=positive_int, default=40, help="a validation after each")
    option("--steps", type=positive_int, default=100, help="steps in an epoch")
    option("--batch-size", type=positive_int, default=32, help="windows of the text a step")
    option("--learning-rate", type=nonnegative_float, default=0.004, help=rate)
    option("--warmup", **share, default=0.05, help="share of the steps in which it rises")
    option("--weight-decay", type=nonnegative_float, default=0.1, help="of Adam, decoupled")
    help = "to which the norm of all gradients is clipped; 0: to none"
    option("--max-norm", type=nonnegative_float, default=1.0, help=help)
    help = "write so many characters, and train nothing"
    option("--sample", type=positive_int, metavar="N", help=help)
    option("--from", **file, dest="source", help="params.npz, which says of which model it is")
    option("--prompt", metavar="TEXT", default="", help="what the sample goes on from")
    help = "below 1 the sample is more likely text; at 0 each character is the most likely one"
    option("--temperature", type=nonnegative_float, default=0.8, help=help)
    option("--top-k", type=positive_int, metavar="K", help="draw from the K most likely alone")
    option("--output", type=command_line.folder, default="runs/text", help="folder for the results")
    training.add_options(parser, checkpoint_every=10)
    options = parser.parse_args(arguments)
    options = argparse.Namespace(**{"data": []} | SIZES[options.model] | vars(options))
    if (options.sample is None) != (options.source is None):
        parser.error("arguments --sample and --from: expected both or none")
    if options.model == "gpt" and options.dim % options.heads:
        dims = f"{options.dim} features and {options.heads} heads"
        parser.error(f"argument --heads: expected heads that divide the features, got {dims}")
    parser.check_most("steps", options.steps * options.batch_size, 10**8, "10^8 windows an epoch")
    if options.sample is None:
        training.check_options(parser, options, FIGURES)
    return options


def make_model(note):
    """The model that the note in params.npz describes."""
    sizes = {name: note[name] for name in MODEL if name != "model"}
    return text.MODELS[note["model"]](len(note["vocabulary"]), **sizes)


def make_writer(options, model, note, length):
    """A function params -> the prompt and `length` characters that follow it."""
    vocabulary = note["vocabulary"]
    prompt = text.encode_prompt(options.prompt, vocabulary)
    how = {"temperature": options.temperature, "top_k": options.top_k}
    program = jax.jit(
        functools.partial(text.sample, model, length=length, context=note["context"], **how)
    )

    def write(params):
        *_, key = jax.random.split(jax.random.key(jnp.uint32(options.seed)), 3)
        tokens = program(params, key, prompt).tolist()
        return options.prompt + "".join(vocabulary[token] for token in tokens)

    return write


def read_text(options):
    """The text as tokens, and its vocabulary, the sorted characters."""
    whole = text.read(options.data)
    vocabulary = "".join(sorted({*whole}))
    least = 10 * (options.context + 1)  # of which a tenth has a window for validation
    if len(whole) < least:
        expected = f"at least {least} characters for --context {options.context}"
        raise UserError(f"argument --data: expected {expected}, got {len(whole)}")
    if len(vocabulary) == 1:
        raise UserError(f"argument --data: expected different characters, got {vocabulary!r} alone")
    return text.encode(whole, vocabulary), vocabulary


def train(options, run_epochs):
    """Train, and return what report needs. See training.run."""
    init_key, key, _ = jax.random.split(jax.random.key(jnp.uint32(options.seed)), 3)
    context, batch_size, num_steps = options.context, options.batch_size, options.steps
    with distributed.together(options.epoch_timeout):
        tokens, vocabulary = read_text(options)
        note = {name: vars(options)[name] for name in MODEL} | {"vocabulary": vocabulary}
        model, loss = make_model(note), fnn.CrossEntropyLoss()
        write = make_writer(options, model, note, CHARACTERS_AT_CHECKPOINT)
    checksum = training.checksum((tokens, jnp.array([*map(ord, vocabulary)])))
    distributed.agree(options.epoch_timeout, {"data": checksum})
    train_tokens, validation_tokens = jnp.split(tokens, [len(tokens) - len(tokens) // 10])
    # In this order a step has the same windows on any number of devices.
    by_device = jnp.arange(num_steps * batch_size).reshape(
        num_steps, distributed.count_devices(options), -1
    )
    numbers = jnp.swapaxes(by_device, 0, 1).reshape(-1)
    windows = text.consecutive_windows(validation_tokens, context)
    data = [
        (*distributed.place_examples(options, [numbers]), distributed.place(options, train_tokens)),
        distributed.place_examples(options, [windows]),
    ]
    all_steps = options.epochs * num_steps
    warmup = min(int(options.warmup * all_steps), all_steps - 1)
    schedule = fnn.cosine_decay(options.learning_rate, all_steps, warmup)
    optimizer = fnn.adam(schedule, b2=0.99, weight_decay=options.weight_decay)
    if options.max_norm:
        optimizer = fnn.clip_by_global_norm(optimizer, options.max_norm)
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, batch_size, shuffle=False)

    def draw_examples(data, key):
        numbers, tokens = data[0]
        window_key = jax.random.fold_in(key, 2)  # make_train_epoch draws from 0 and 1
        return text.draw_windows(tokens, numbers, window_key, context)

    def run_epoch(data, state, key):
        state, losses = train_epoch(state, *draw_examples(data, key), key)
        validation = text.evaluate(model, state.params, *data[1])
        return state, losses, (jnp.mean(losses) / math.log(2), *validation)

    def write_sample(number, params):
        sample = write(params)
        write_text(options.output / f"sample_{number:04}.txt", f"{sample}\n")
        return sample

    def watch(number, params):
        if number % options.checkpoint_every == 0 and 0 < number < options.epochs:
            write_sample(number, jax.device_get(params))

    source = ", ".join(map(str, options.data or ["Python's own documentation"]))
    trained = run_epochs(
        run_epoch,
        (model, loss, optimizer),
        jax.jit(functools.partial(fnn.init_train_state, model, optimizer))(init_key),
        data,
        key,
        data_checksum=checksum,
        description=f"""\
{fnn.summary(model, (batch_size, context), tokens.dtype)}

data      {source}: {len(vocabulary)} kinds of characters
text      {len(train_tokens):,} characters to train on, {len(validation_tokens):,} for validation
Adam      learning rate {options.learning_rate:g} (cosine after {warmup} steps), \
weight decay {options.weight_decay:g}, dropout {options.dropout:g}""",
        columns=["train_bits", "validation_bits", "validation_accuracy"],
        progress="train {:.3f} bits  val {:.3f} bits acc {:7.2%}  {rest}",
        remedy="lower --learning-rate",
        draw_examples=draw_examples,
        note=note,
        watch=watch,
    )
    return trained, write_sample


def report(options, trained, write_sample):
    """Write the figures. Returns the parts of the summary line if the training is complete."""
    train_bits, validation_bits, accuracy = zip(*trained.table, strict=True)
    name = "validation text"
    bits = [Curve(name, validation_bits), Curve("training text, with dropout", train_bits)]
    panels = [("bits per character", bits), ("accuracy, %", [Curve(name, accuracy)])]
    curves = figures.learning_curves(panels, f"Training, {options.model}, seed {options.seed}")
    write_text(options.output / "curves.svg", curves)
    if trained.status:
        return None
    sample = write_sample(options.epochs, trained.params)
    if not options.quiet:
        print(sample)
    last = f"{validation_bits[-1]:.4f} bits per character, accuracy {accuracy[-1]:.2%}"
    return f"validation {last}", [], []


def write_from(options):
    """Print what the stored model writes."""
    path = options.source
    try:
        note = fnn.read_note(path)
        if not isinstance(note, dict) or not {*MODEL, "vocabulary"} <= note.keys():
            raise ValueError("there is no note of a model of text")
        model = make_model(note)
        params = fnn.load(path, jax.eval_shape(model.init, jax.random.key(0)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: expected what this script stores: {error}") from None
    print(make_writer(options, model, note, options.sample)(params))
    return 0


def main(arguments=None):
    options = parse_options(arguments)
    if options.sample:
        if not options.fast:
            command_line.make_gpu_deterministic()
        return command_line.run(write_from, options)
    return training.run(train, report, options)


if __name__ == "__main__":
    command_line.leave(main())
