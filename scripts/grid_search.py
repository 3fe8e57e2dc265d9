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

MOST_AT_ONCE = 128  # networks; more of them are trained one chunk after the other
FILES = ["grid.csv", "chosen.csv", "curves.svg"]


class Results(NamedTuple):
    """Metrics of many networks: on the training points over the epochs, at the end on others."""

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
    if options.first_seed + options.seeds > 2**32:
        parser.error(
            f"argument --first-seed: expected at most {2**32 - options.seeds} with "
            f"{options.seeds} seeds, got {options.first_seed}"
        )
    most = options.train_size - options.batch_size
    if options.validation_size > most:
        parser.error(
            f"argument --validation-size: expected at most {most}, which leaves a batch of the "
            f"{options.train_size} training points, got {options.validation_size}"
        )
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
        train_key, test_key, init_key, epoch_key = jax.random.split(jax.random.key(seed), 4)
        points = sample(train_key, options.train_size)
        train, held_out = (
            jax.tree.map(lambda a, part=part: a[part], points)
            for part in (slice(num_examples), slice(num_examples, None))
        )
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
    chunks = []
    with fnn.progress(num_chunks * options.epochs, quiet=False) as report:
        for chunk in range(num_chunks):
            # The last chunk is filled up, so that one compiled program serves all of them.
            members = [min(i, len(rates) - 1) for i in range(chunk * size, (chunk + 1) * size)]
            chunk_rates = jnp.array([rates[i] for i in members])
            chunk_seeds = jnp.array([seeds[i] for i in members], jnp.uint32)
            state, train, unseen, epoch_key = start(chunk_rates, chunk_seeds)
            curves = []
            for epoch in range(1, options.epochs + 1):
                state, metrics = run_epoch(chunk_rates, state, train, epoch_key, epoch)
                curves.append(metrics)
                report(
                    chunk * options.epochs + epoch,
                    f"{title}: {len(rates)} networks, part {chunk + 1}/{num_chunks}, "
                    f"epoch {epoch}/{options.epochs}, training MSE {jnp.mean(metrics[0]):.5f}",
                )
            chunks.append((*map(jnp.stack, zip(*curves, strict=True)), *test(state, unseen)))
    joined = (jnp.concatenate(parts, axis=-1) for parts in zip(*chunks, strict=True))
    return Results(*(part[..., : len(rates)] for part in joined))


def interval(values, form):
    """Mean over the seeds, and its 95 % confidence interval where there is one, as text."""
    mean, half_width = disk.confidence_interval(values.tolist())
    spread = "" if math.isnan(half_width) else f" ± {half_width:{form}}"
    return f"{mean:{form}}{spread}"


def write_table(path, unseen, rates, seeds, results):
    """One row a network: its rate, its seed, its metrics on training and on unseen points."""
    names = ("train_loss", "train_accuracy", f"{unseen}_loss", f"{unseen}_accuracy")
    last = (results.train_losses[-1], results.train_accuracies[-1])
    columns = (*last, results.losses, results.accuracies)
    rows = [["learning_rate", "seed", *names]]
    values = (column.tolist() for column in columns)
    for rate, seed_, *metrics in zip(rates, seeds, *values, strict=True):
        rows.append([rate, seed_, *disk.format_metrics(*metrics)])
    write_rows(path, rows)


def draw_curves(rates, results):
    """Training loss and accuracy over the epochs: for each rate the mean and its interval.

    The networks of results are grouped by rate.
    """
    panels = []
    for y_label, table in (
        ("training MSE", results.train_losses),
        ("training accuracy, %", results.train_accuracies),
    ):
        by_rate = jnp.split(table, len(rates), axis=1)
        curves = []
        for rate, of_rate in zip(rates, by_rate, strict=True):
            bounds = [disk.confidence_interval(epoch) for epoch in of_rate.tolist()]
            mean = [mean for mean, _ in bounds]
            low, high = [m - h for m, h in bounds], [m + h for m, h in bounds]
            curves.append(figures.Curve(f"learning rate {rate:g}", mean, low, high))
        panels.append((y_label, curves))
    num_seeds = results.train_losses.shape[1] // len(rates)
    title = f"Training by learning rate: mean and 95 % interval over {num_seeds} seeds"
    return figures.learning_curves(panels, title)


def search(options):
    """Train the grid, choose a rate, train and test with it. Returns the exit status."""
    start_time = time.monotonic()
    rates, all_seeds = options.rates, range(options.first_seed, options.first_seed + options.seeds)
    grid_rates = [rate for rate in rates for _ in all_seeds]
    grid_seeds = [*all_seeds] * len(rates)
    grid = train_networks(options, grid_rates, grid_seeds, options.validation_size, "grid")
    write_table(options.output / "grid.csv", "validation", grid_rates, grid_seeds, grid)
    write_text(options.output / "curves.svg", draw_curves(rates, grid))

    print(f"\nmean and 95 % interval over {options.seeds} seeds")
    print("learning rate       training MSE     validation MSE  validation accuracy")
    best_rate, best_accuracy = None, -1.0
    for index, rate in enumerate(rates):
        of_rate = slice(index * options.seeds, (index + 1) * options.seeds)
        train_losses, losses = grid.train_losses[-1, of_rate], grid.losses[of_rate]
        accuracies = grid.accuracies[of_rate]
        print(
            f"{rate:<13g}  {interval(train_losses, '.5f'):>17}  {interval(losses, '.5f'):>17}  "
            f"{interval(accuracies, '.2%'):>19}"
        )
        if jnp.isfinite(jnp.sum(train_losses)) and jnp.mean(accuracies) > best_accuracy:
            best_rate, best_accuracy = rate, jnp.mean(accuracies)
    if best_rate is None:
        tell("no rate has finite losses: lower --rates")
        return 1

    print(f"\nchosen by validation accuracy: learning rate {best_rate:g}")
    chosen_rates = [best_rate] * options.seeds
    chosen = train_networks(options, chosen_rates, all_seeds, 0, "chosen rate")
    write_table(options.output / "chosen.csv", "test", chosen_rates, all_seeds, chosen)
    if not jnp.isfinite(jnp.sum(chosen.train_losses[-1])):
        tell(f"losses are not finite at rate {best_rate:g}")
        return 1
    print(
        f"training MSE {interval(chosen.train_losses[-1], '.5f')}, "
        f"accuracy {interval(chosen.train_accuracies[-1], '.2%')}\n"
        f"test MSE     {interval(chosen.losses, '.5f')}, "
        f"accuracy {interval(chosen.accuracies, '.2%')}\n"
        f"{time.monotonic() - start_time:.1f} seconds"
    )
    return 0


def main(arguments=None):
    options = parse_options(arguments)
    return run(search, options, options.output)


if __name__ == "__main__":
    leave(main())
