"""Search the learning rate on the disk task: many rates and seeds in one compiled program."""

import functools
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from shared import disk, figures
from shared.command_line import (
    Parser,
    leave,
    nonnegative_float,
    positive_int,
    run,
    seed,
    tell,
    write_rows,
    write_text,
)

import fnn

MOST_AT_ONCE = 128  # networks; if there are more, they are trained one chunk after the other
MOST_NETWORKS = 10**6  # their metrics are kept in memory
FILES = ["grid.csv", "chosen.csv", "curves.svg"]


class Results(NamedTuple):
    """Metrics of many networks: on training points after each epoch, on unseen ones at the end."""

    train_losses: jax.Array  # (epochs, networks)
    train_accuracies: jax.Array  # (epochs, networks)
    losses: jax.Array  # (networks,)
    accuracies: jax.Array  # (networks,)


def parse_options(arguments=None):
    parser = Parser(
        "Train the disk network with several learning rates and seeds at once, on part of the "
        "training points; choose the rate with the best mean accuracy on the rest; train with it "
        "on all of them, and test once. Losses are means over all elements."
    )
    option = parser.add_argument
    rates = [0.01, 0.015, 0.04]
    option("--rates", type=nonnegative_float, nargs="+", default=rates, help="learning rates")
    option("--seeds", type=positive_int, default=20, help="number of seeds")
    option("--first-seed", type=seed, default=0, help="the others follow")
    option("--validation-size", type=positive_int, default=200, help="training points held out")
    option("--standardize", action="store_true", help="scale inputs to mean 0 and variance 1")
    disk.add_encoding_option(parser)
    disk.add_training_options(parser, **disk.REPORT_PROTOCOL, output="runs/grid")
    options = parser.parse_args(arguments)
    seeds, num_rates, num_points = options.seeds, len(options.rates), options.train_size
    batch = f", which leaves a batch of the {num_points} training points"
    for name, value, most, reason in (
        ("first-seed", options.first_seed, 2**32 - seeds, f" with {seeds} seeds"),
        ("seeds", seeds, MOST_NETWORKS // num_rates, f" with {num_rates} rates"),
        ("validation-size", options.validation_size, num_points - options.batch_size, batch),
    ):
        if value > most:
            parser.error(f"argument --{name}: expected at most {most}{reason}, got {value}")
    if len(set(options.rates)) < len(options.rates):
        parser.error(f"argument --rates: expected different rates, got {options.rates}")
    parser.check_output(options.output, FILES)
    return options


def train_networks(options, rates, seeds, num_held_out, title) -> Results:
    """Train a network for every pair of rates and seeds, MOST_AT_ONCE at a time.

    The unseen points are the last num_held_out training points, or, if 0, the test points.
    """
    num_examples = options.train_size - num_held_out
    num_steps = disk.count_steps(options, num_examples)
    model = disk.make_network(options.hidden, options.activation)
    loss = fnn.MSELoss(options.reduction)

    def sample(key, size):
        points, labels = fnn.sample_disk(key, size)
        if options.standardize:  # a uniform variable has mean 1/2 and variance 1/12
            points = (points - 0.5) * math.sqrt(12)
        return points, disk.encode(labels, options.encoding), labels

    @jax.jit
    @jax.vmap
    def start(rate, seed):
        train_key, test_key, init_key, epoch_key = disk.split_keys(seed)
        points = sample(train_key, options.train_size)
        train = [array[:num_examples] for array in points]
        held_out = [array[num_examples:] for array in points]
        unseen = held_out if num_held_out else sample(test_key, options.test_size)
        optimizer = disk.make_optimizer(options, rate, num_steps)
        return fnn.init_train_state(model, optimizer, init_key), train, unseen, epoch_key

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None))
    def run_epoch(rate, state, train, epoch_key, epoch):
        optimizer = disk.make_optimizer(options, rate, num_steps)
        train_epoch = fnn.make_train_epoch(model, loss, optimizer, options.batch_size)
        points, targets, _ = train
        state, _ = train_epoch(state, points, targets, jax.random.fold_in(epoch_key, epoch))
        return state, disk.evaluate(model, state.params, *train)

    @jax.jit
    @jax.vmap
    def test(state, unseen):
        return disk.evaluate(model, state.params, *unseen)

    num_chunks = math.ceil(len(rates) / MOST_AT_ONCE)
    size = math.ceil(len(rates) / num_chunks)
    # The last chunk is filled up, so that one compiled program serves all of them.
    networks = [min(i, len(rates) - 1) for i in range(num_chunks * size)]
    all_rates = jnp.array([rates[i] for i in networks]).reshape(-1, size)
    all_seeds = jnp.array([seeds[i] for i in networks], jnp.uint32).reshape(-1, size)
    chunks = []
    with fnn.progress(num_chunks * options.epochs, quiet=False) as report:
        for chunk in range(num_chunks):
            state, train, unseen, epoch_key = start(all_rates[chunk], all_seeds[chunk])
            curves = []
            for epoch in range(1, options.epochs + 1):
                state, metrics = run_epoch(all_rates[chunk], state, train, epoch_key, epoch)
                curves.append(metrics)
                report(
                    chunk * options.epochs + epoch,
                    f"{title}: {len(rates)} networks, part {chunk + 1}/{num_chunks}, "
                    f"epoch {epoch}/{options.epochs}, training MSE {jnp.mean(metrics[0]):.5f}",
                )
            chunks.append((*map(jnp.stack, zip(*curves, strict=True)), *test(state, unseen)))
    joined = (jnp.concatenate(parts, axis=-1) for parts in zip(*chunks, strict=True))
    return Results(*(part[..., : len(rates)] for part in joined))


def write_table(path, unseen, rates, seeds, results):
    """Write a row for each network: rate, seed, metrics on training and on unseen points."""
    names = ("train_loss", "train_accuracy", f"{unseen}_loss", f"{unseen}_accuracy")
    last = (results.train_losses[-1], results.train_accuracies[-1])
    columns = (column.tolist() for column in (*last, results.losses, results.accuracies))
    rows = [["learning_rate", "seed", *names]]
    for rate, seed_, *metrics in zip(rates, seeds, *columns, strict=True):
        rows.append([rate, seed_, *disk.format_metrics(*metrics)])
    write_rows(path, rows)


def split_by_rate(results, num_rates):
    """The Results of each rate, where those of all are grouped by rate."""
    parts = (jnp.split(array, num_rates, axis=-1) for array in results)
    return [Results(*of_rate) for of_rate in zip(*parts, strict=True)]


def draw_curves(rates, results):
    """Training loss and accuracy over the epochs: for each rate the mean and its interval."""
    curves = [], []
    by_rate = split_by_rate(results, len(rates))
    for rate, of_rate in zip(rates, by_rate, strict=True):
        for panel, table in zip(curves, of_rate[:2], strict=True):
            intervals = [disk.confidence_interval(epoch) for epoch in table.tolist()]
            low, high = ([mean + sign * half for mean, half in intervals] for sign in (-1, 1))
            means = [mean for mean, _ in intervals]
            panel.append(figures.Curve(f"learning rate {rate:g}", means, low, high))
    panels = zip(("training MSE", "training accuracy, %"), curves, strict=True)
    num_seeds = len(by_rate[0].losses)
    title = f"Training by learning rate: mean and 95 % interval over {num_seeds} seeds"
    return figures.learning_curves([*panels], title)


def interval(values, form):
    """The mean over the seeds and its 95 % confidence interval, if there is one, as text."""
    mean, half_width = disk.confidence_interval(values.tolist())
    spread = "" if math.isnan(half_width) else f" ± {half_width:{form}}"
    return f"{mean:{form}}{spread}"


def choose_rate(rates, by_rate):
    """The rate with the best mean validation accuracy where all losses are finite, or None."""
    means = {
        rate: jnp.mean(results.accuracies)
        for rate, results in zip(rates, by_rate, strict=True)
        if jnp.all(jnp.isfinite(results.train_losses[-1]))
    }
    return max(means, key=means.get, default=None)


def print_grid(rates, by_rate):
    print(f"\nmean and 95 % interval over {len(by_rate[0].losses)} seeds")
    print("learning rate       training MSE     validation MSE  validation accuracy")
    for rate, results in zip(rates, by_rate, strict=True):
        losses = interval(results.train_losses[-1], ".5f"), interval(results.losses, ".5f")
        accuracy = interval(results.accuracies, ".2%")
        print(f"{rate:<13g}  {losses[0]:>17}  {losses[1]:>17}  {accuracy:>19}")


def search(options):
    """Train the grid, choose a rate, train and test with it. Returns the exit status.

    All results are in files before any of them is printed.
    """
    start_time = time.monotonic()
    rates, seeds = options.rates, range(options.first_seed, options.first_seed + options.seeds)
    pairs = [rate for rate in rates for _ in seeds], [*seeds] * len(rates)
    grid = train_networks(options, *pairs, options.validation_size, "grid")
    write_table(options.output / "grid.csv", "validation", *pairs, grid)
    write_text(options.output / "curves.svg", draw_curves(rates, grid))
    by_rate = split_by_rate(grid, len(rates))
    rate = choose_rate(rates, by_rate)
    if rate is None:
        print_grid(rates, by_rate)
        tell("no rate has finite losses: lower --rates")
        return 1
    pairs = [rate] * options.seeds, seeds
    chosen = train_networks(options, *pairs, 0, "chosen rate")
    write_table(options.output / "chosen.csv", "test", *pairs, chosen)
    print_grid(rates, by_rate)
    print(f"\nchosen by validation accuracy: learning rate {rate:g}")
    train_losses, train_accuracies = chosen.train_losses[-1], chosen.train_accuracies[-1]
    if not jnp.all(jnp.isfinite(train_losses)):
        tell(f"losses are not finite at rate {rate:g}")
        return 1
    for name, losses, accuracies in (
        ("training MSE", train_losses, train_accuracies),
        ("test MSE    ", chosen.losses, chosen.accuracies),
    ):
        print(f"{name} {interval(losses, '.5f')}, accuracy {interval(accuracies, '.2%')}")
    print(f"{time.monotonic() - start_time:.1f} seconds")
    return 0


def main(arguments=None):
    options = parse_options(arguments)
    return run(search, options, options.output)


if __name__ == "__main__":
    leave(main())
