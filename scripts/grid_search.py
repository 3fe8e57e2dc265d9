r"""Search the learning rate on the disk task: many rates and seeds in one compiled program.

fnn grew from a course report, "Mini deep learning framework" (EE-559, EPFL). It
has 1000 training and 1000 test points, a 2-25-25-25-2 network, MSE, plain SGD,
batch size 1 and 150 epochs: the defaults here. The report found its own
framework behind PyTorch, at 81.5 % test accuracy against 83.8 %, and could not
say why. compare_pytorch.py --help has the causes.

Test accuracy, and the training loss as the report counts it: the mean and the
95 % interval over 100 seeds of data, parameters and batches.

  targets   errors over outputs  rate   test accuracy  training loss
  report's  summed               0.01   82.5 +- 1.1 %  0.0237
                                 0.015  79.5 +- 1.4 %  0.0219
                                 0.04   58.7 +- 2.0 %  0.0225
  report's  averaged             0.01   82.0 +- 0.9 %  0.0099
                                 0.015  82.8 +- 1.0 %  0.0107
                                 0.04   75.9 +- 1.7 %  0.0106
  one-hot   summed               0.01   96.3 +- 0.3 %  0.0422
                                 0.015  96.2 +- 0.3 %  0.0435
                                 0.04   96.4 +- 0.3 %  0.0427

Each row is a run of its own. Those at rate 0.01 are:

  grid_search.py --seeds 100 --rates 0.01 --encoding report
  grid_search.py --seeds 100 --rates 0.01 --encoding report --reduction mean
  grid_search.py --seeds 100 --rates 0.01

With three rates a run draws their curves, on 800 of the training points:

  grid_search.py --seeds 100

The network can do more: 99.12 +- 0.07 % test accuracy and a test MSE of 0.0082
+- 0.0003 over 100 seeds. Of these four rates 0.25 has the best validation
accuracy:

  grid_search.py --seeds 100 --rates 0.25 0.5 1 2 --schedule cosine \
      --batch-size 10 --reduction mean --activation tanh --standardize
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -I does not look there
from shared.interrupts import die_of_interrupts

if __name__ == "__main__":
    die_of_interrupts()  # until command_line.run handles them

import functools
import itertools
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from shared import command_line, disk, figures
from shared.command_line import Parser, leave, nonnegative_float, positive_int, seed, tell

import fnn
from fnn.files import write_rows, write_text

MOST_AT_ONCE = 128  # networks; if there are more, they are trained one chunk after the other
MOST_NETWORKS = 10**6  # their metrics are kept in memory
FILES = ["grid.csv", "chosen.csv", "curves.svg"]


class Results(NamedTuple):
    """Metrics on training points after each epoch, and on unseen points after the last one."""

    train_losses: jax.Array  # (epochs, rates, seeds)
    train_accuracies: jax.Array  # (epochs, rates, seeds)
    losses: jax.Array  # (rates, seeds)
    accuracies: jax.Array  # (rates, seeds)


def parse_options(arguments=None):
    parser = Parser(
        "Train the disk network with several learning rates and seeds at once, on part of the "
        "training points; choose the rate with the best mean accuracy on the rest; train with it "
        "on all of them, and test once. Losses are means over all elements.",
        __doc__,
    )
    option = parser.add_argument
    rates = [0.01, 0.015, 0.04]
    option("--rates", type=nonnegative_float, nargs="+", default=rates, help="learning rates")
    option("--seeds", type=positive_int, default=20, help="number of seeds")
    option("--first-seed", type=seed, default=0, help="the others follow")
    option("--validation-size", type=positive_int, default=200, help="training points held out")
    option("--standardize", action="store_true", help="scale inputs to mean 0 and variance 1")
    disk.add_encoding_option(parser)
    disk.add_options(parser, output="runs/grid")
    options = parser.parse_args(arguments)
    disk.check_batch_size(parser, options)
    seeds, num_rates, num_points = options.seeds, len(options.rates), options.train_size
    batch = f", which leaves a batch of the {num_points} training points"
    for name, value, most, reason in (
        ("first-seed", options.first_seed, 2**32 - seeds, f" with {seeds} seeds"),
        ("seeds", seeds, MOST_NETWORKS // num_rates, f" with {num_rates} rates"),
        ("validation-size", options.validation_size, num_points - options.batch_size, batch),
    ):
        parser.check_most(name, value, most, f"{most}{reason}")
    if len(set(options.rates)) < len(options.rates):
        parser.error(f"argument --rates: expected different rates, got {options.rates}")
    parser.check_output(options.output, FILES)
    return options


def seeds_of(options):
    return range(options.first_seed, options.first_seed + options.seeds)


def train_networks(options, rates, num_held_out, title) -> Results:
    """Train a network for each of the rates and each seed, MOST_AT_ONCE at a time.

    The unseen points are the last num_held_out training points, or, if 0, the test points.
    """
    num_examples = options.train_size - num_held_out
    model = disk.make_network(options.hidden, options.activation)
    loss = fnn.MSELoss(options.reduction)
    of_data = {"encoding": options.encoding, "standardize": options.standardize}

    @jax.jit
    @jax.vmap
    def start(rate, seed):
        optimizer = disk.make_optimizer(options, rate, num_examples)
        data, state, epoch_key = disk.start(options, model, optimizer, seed, **of_data)
        train_set, test_set = data
        train = [array[:num_examples] for array in train_set]
        held_out = [array[num_examples:] for array in train_set]
        unseen = held_out if num_held_out else test_set
        return state, train, unseen, epoch_key

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None))
    def run_epoch(rate, state, train, epoch_key, epoch):
        optimizer = disk.make_optimizer(options, rate, num_examples)
        train_epoch = fnn.make_train_epoch(model, loss, optimizer, options.batch_size)
        points, targets, _ = train
        state, _ = train_epoch(state, points, targets, jax.random.fold_in(epoch_key, epoch))
        return state, disk.evaluate(model, state.params, *train)

    @jax.jit
    @jax.vmap
    def test(state, unseen):
        return disk.evaluate(model, state.params, *unseen)

    pairs = [*itertools.product(rates, seeds_of(options))]
    num_networks, num_chunks = len(pairs), math.ceil(len(pairs) / MOST_AT_ONCE)
    size = math.ceil(num_networks / num_chunks)
    # The last chunk is filled up, so that one compiled program serves all of them.
    pairs += pairs[-1:] * (num_chunks * size - num_networks)
    chunks = []
    with fnn.progress(num_chunks * options.epochs) as report:
        for chunk in range(num_chunks):
            its_rates, its_seeds = zip(*pairs[chunk * size : (chunk + 1) * size], strict=True)
            its_rates, its_seeds = jnp.array(its_rates), jnp.array(its_seeds, jnp.uint32)
            state, train, unseen, epoch_key = start(its_rates, its_seeds)
            curves = []
            for epoch in range(1, options.epochs + 1):
                state, metrics = run_epoch(its_rates, state, train, epoch_key, epoch)
                curves.append(metrics)
                report(
                    chunk * options.epochs + epoch,
                    f"{title}: {num_networks} networks, part {chunk + 1}/{num_chunks}, "
                    f"epoch {epoch}/{options.epochs}, training MSE {jnp.mean(metrics[0]):.5f}",
                )
            chunks.append((*map(jnp.stack, zip(*curves, strict=True)), *test(state, unseen)))
    joined = (jnp.concatenate(parts, axis=-1) for parts in zip(*chunks, strict=True))
    by_rate = (a[..., :num_networks].reshape(*a.shape[:-1], len(rates), -1) for a in joined)
    return Results(*by_rate)


def write_table(options, name, unseen, rates, results):
    """Write a row for each network: rate, seed, metrics on training and on unseen points."""
    train, accuracies = results.train_losses[-1], results.train_accuracies[-1]
    columns = (a.ravel().tolist() for a in (train, accuracies, *results[2:]))
    rows = [["learning_rate", "seed", *(m.replace("test", unseen) for m in disk.METRICS)]]
    pairs = itertools.product(rates, seeds_of(options))
    for pair, *metrics in zip(pairs, *columns, strict=True):
        rows.append([*pair, *command_line.format_metrics(disk.METRICS, metrics)])
    write_rows(options.output / name, rows)


def draw_curves(rates, results):
    """Training loss and accuracy over the epochs: for each rate the mean and its interval."""
    panels = []
    for y_label, table in zip(("training MSE", "training accuracy, %"), results[:2], strict=True):
        curves = []
        for index, rate in enumerate(rates):
            mean, half = disk.confidence_interval(table[:, index])
            values = (part.tolist() for part in (mean, mean - half, mean + half))
            curves.append(figures.Curve(f"learning rate {rate:g}", *values))
        panels.append((y_label, curves))
    num_seeds = results.losses.shape[-1]
    title = f"Training by learning rate: mean and 95 % interval over {num_seeds} seeds"
    return figures.learning_curves(panels, title)


def interval(values, form):
    """The mean over the seeds and its 95 % confidence interval, if there is one, as text."""
    mean, half_width = map(float, disk.confidence_interval(values))
    spread = "" if math.isnan(half_width) else f" ± {half_width:{form}}"
    return f"{mean:{form}}{spread}"


def choose_rate(rates, results):
    """The rate with the best mean validation accuracy where all losses are finite, or None."""
    is_good = jnp.all(jnp.isfinite(results.train_losses[-1] + results.losses), axis=-1)
    means = jnp.mean(results.accuracies, axis=-1)
    of_good = {rate: mean for rate, mean, good in zip(rates, means, is_good, strict=True) if good}
    return max(of_good, key=of_good.get, default=None)


def print_grid(rates, results):
    print(f"\nmean and 95 % interval over {results.losses.shape[-1]} seeds")
    print("learning rate       training MSE     validation MSE  validation accuracy")
    for rate, *metrics in zip(rates, results.train_losses[-1], *results[2:], strict=True):
        texts = map(interval, metrics, (".5f", ".5f", ".2%"))
        print("{:<13g}  {:>17}  {:>17}  {:>19}".format(rate, *texts))


def search(options):
    """Train the grid, choose a rate, train and test with it. Returns the exit status.

    All results are in files before any of them is printed.
    """
    start_time, rates = time.monotonic(), options.rates
    grid = train_networks(options, rates, options.validation_size, "grid")
    write_table(options, "grid.csv", "validation", rates, grid)
    write_text(options.output / "curves.svg", draw_curves(rates, grid))
    rate = choose_rate(rates, grid)
    if rate is None:
        print_grid(rates, grid)
        tell("no rate has finite losses: lower --rates")
        return 1
    chosen = train_networks(options, [rate], 0, "chosen rate")
    write_table(options, "chosen.csv", "test", [rate], chosen)
    print_grid(rates, grid)
    print(f"\nchosen by validation accuracy: learning rate {rate:g}")
    losses, accuracies = chosen.train_losses[-1, 0], chosen.train_accuracies[-1, 0]
    if not jnp.all(jnp.isfinite(losses)):
        tell(f"losses are not finite at rate {rate:g}")
        return 1
    print(f"training MSE {interval(losses, '.5f')}, accuracy {interval(accuracies, '.2%')}")
    losses, accuracies = chosen.losses[0], chosen.accuracies[0]
    print(f"test MSE     {interval(losses, '.5f')}, accuracy {interval(accuracies, '.2%')}")
    print(f"{time.monotonic() - start_time:.1f} seconds")
    return 0


def main(arguments=None):
    options = parse_options(arguments)
    command_line.make_gpu_deterministic()
    return command_line.run(search, options, options.output)


if __name__ == "__main__":
    leave(main())
