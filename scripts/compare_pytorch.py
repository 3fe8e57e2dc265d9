# /// script
# requires-python = ">=3.11"
# dependencies = ["fnn", "jax", "torch"]
#
# [tool.uv.sources]
# fnn = { path = "..", editable = true }
# ///
"""Train the disk network in fnn and in PyTorch, from the same parameters on the same batches."""

import math
import time
from itertools import pairwise

import jax
import jax.numpy as jnp
from shared import disk, figures
from shared.command_line import (
    Parser,
    leave,
    nonnegative_float,
    run,
    seed,
    tell,
    write_rows,
    write_text,
)

import fnn


def parse_options(arguments=None):
    parser = Parser(
        "Train the disk network in fnn and in PyTorch, from the same initial parameters on the "
        "same batches in the same order, and compare them. Losses reported are means over all "
        "elements. PyTorch is needed here and nowhere else in fnn."
    )
    option = parser.add_argument
    option("--seed", type=seed, default=0, help="of data, parameters and batches")
    option("--rates", type=nonnegative_float, nargs="+", default=[0.01], help="learning rates")
    option("--torch-rate", type=nonnegative_float, help="PyTorch's rate, if not fnn's")
    option("--torch-reduction", choices=disk.REDUCTIONS, help="PyTorch's reduction, if not fnn's")
    option("--dtype", choices=("float32", "float64"), default="float32", help="of all arithmetic")
    disk.add_encoding_option(parser)
    disk.add_training_options(parser, **disk.REPORT_PROTOCOL, output="runs/compare")
    options = parser.parse_args(arguments)
    disk.check_batch_size(parser, options)
    if len({f"{rate:g}" for rate in options.rates}) < len(options.rates):
        parser.error(
            f"argument --rates: expected rates that print differently, got {options.rates}"
        )
    require_pytorch(parser)
    figure_names = [f"curves_{rate:g}.svg" for rate in options.rates]
    parser.check_output(options.output, ["comparison.csv", *figure_names])
    return options


def import_torch():
    """PyTorch, which is imported where it is used, and by the scripts that compare alone."""
    import torch

    return torch


def require_pytorch(parser):
    """End with an error where PyTorch is not installed."""
    try:
        import_torch()
    except ImportError:
        parser.error("PyTorch is not installed; 'pip install torch' installs it")


def compare(options):
    """Train in both frameworks at every rate, and report. Returns the exit status."""
    widths = "-".join(map(str, [2, *options.hidden, 2]))
    print(
        f"network {widths}, {options.activation}, {options.dtype}; {options.encoding} targets; "
        f"seed {options.seed}\n{options.epochs} epochs, batch size {options.batch_size}, "
        f"momentum {options.momentum:g}, weight decay {options.weight_decay:g}"
    )
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    columns = [f"{framework}_{name}" for framework in ("fnn", "torch") for name in names]
    rows = [["learning_rate", "epoch", *columns, "largest_difference"]]
    with jax.enable_x64(options.dtype == "float64"):
        for rate in options.rates:
            (fnn_history, torch_history), more_rows = compare_at(options, rate)
            rows += more_rows
            write_rows(options.output / "comparison.csv", rows)
            panels = []
            for y_label, ours, theirs in zip(
                ("training MSE", "training accuracy, %"),
                zip(*fnn_history, strict=True),
                zip(*torch_history, strict=True),
                strict=False,
            ):
                curves = figures.Curve("fnn", ours), figures.Curve("PyTorch", theirs, dashed=True)
                panels.append((y_label, curves))
            title = f"Training in both frameworks, learning rate {rate:g}, seed {options.seed}"
            svg = figures.learning_curves(panels, title)
            write_text(options.output / f"curves_{rate:g}.svg", svg)
            if not all(map(math.isfinite, (*fnn_history[-1], *torch_history[-1]))):
                tell(f"losses are not finite at rate {rate:g}: lower --rates")
                return 1
    return 0


def compare_at(options, rate):
    """Train at one learning rate; for each a list of four metrics an epoch, and the file's rows."""
    import torch

    num_steps = disk.count_steps(options, options.train_size)
    model = disk.make_network(options.hidden, options.activation)
    loss = fnn.MSELoss(options.reduction)
    optimizer = disk.make_optimizer(options, rate, num_steps)
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, options.batch_size, shuffle=False)
    evaluate = jax.jit(lambda params, data: disk.evaluate(model, params, *data))

    @jax.jit
    def start(seed):
        train_key, test_key, init_key, epoch_key = jax.random.split(jax.random.key(seed), 4)
        data = []
        for key, size in ((train_key, options.train_size), (test_key, options.test_size)):
            points, labels = fnn.sample_disk(key, size, dtype=options.dtype)
            targets = disk.encode(labels, options.encoding).astype(options.dtype)
            data.append((points, targets, labels))
        params = jax.tree.map(lambda leaf: leaf.astype(options.dtype), model.init(init_key))
        return fnn.TrainState(params, optimizer.init(params)), data, epoch_key

    @jax.jit
    def shuffle(train, key, epoch):
        points, targets, _ = train
        order = jax.random.permutation(jax.random.fold_in(key, epoch), options.train_size)
        return points[order], targets[order]

    @jax.jit
    def largest_difference(params, others):
        pairs = zip(jax.tree.leaves(params), others, strict=True)
        return jnp.max(jnp.stack([jnp.max(jnp.abs(a - b)) for a, b in pairs]))

    torch.set_num_threads(1)  # its fastest on a network this small
    state, data, key = start(jnp.uint32(options.seed))
    torch_data = [to_torch(part) for part in data]
    weights = to_torch(jax.tree.leaves(state.params))
    network = torch_network(options.hidden, options.activation, weights)
    torch_rate = rate if options.torch_rate is None else options.torch_rate
    torch_reduction = options.torch_reduction or options.reduction
    torch_optimizer = torch.optim.SGD(
        network.parameters(), 0.0, options.momentum, weight_decay=options.weight_decay
    )
    schedule = disk.make_schedule(options, torch_rate, num_steps)
    torch_rates = iter(jax.vmap(schedule)(jnp.arange(num_steps)).tolist())

    def torch_epoch(points, targets):
        batches = zip(*(a.split(options.batch_size) for a in (points, targets)), strict=True)
        for x, target in batches:
            for group in torch_optimizer.param_groups:
                group["lr"] = next(torch_rates)
            torch_step(network, torch_optimizer, torch_reduction, x, target)

    jax.block_until_ready(train_epoch(state, *shuffle(data[0], key, 0)))  # compile, untimed
    histories, rows, seconds = ([], []), [], [0.0, 0.0]
    print(f"\nfnn: learning rate {rate:g}, reduction {options.reduction}")
    print(f"PyTorch: learning rate {torch_rate:g}, reduction {torch_reduction}")
    for epoch in range(1, options.epochs + 1):
        batches = jax.block_until_ready(shuffle(data[0], key, epoch))
        started = time.perf_counter()
        state, _ = jax.block_until_ready(train_epoch(state, *batches))
        seconds[0] += time.perf_counter() - started
        batches = to_torch(batches)
        started = time.perf_counter()
        torch_epoch(*batches)
        seconds[1] += time.perf_counter() - started
        for history, metrics in (
            (histories[0], [m for part in data for m in evaluate(state.params, part)]),
            (histories[1], [m for part in torch_data for m in torch_evaluate(network, *part)]),
        ):
            history.append([float(metric) for metric in metrics])
        others = [jnp.asarray(p.detach().numpy()) for p in network.parameters()]
        difference = largest_difference(state.params, others)
        metrics = [text for history in histories for text in disk.format_metrics(*history[-1])]
        rows.append([rate, epoch, *metrics, f"{difference:.3g}"])
        print(f"epoch {epoch}/{options.epochs}  largest parameter difference {difference:.2e}")

    print("\nframework  training loss  accuracy   test loss  accuracy   training time")
    for framework, history, spent in zip(("fnn", "PyTorch"), histories, seconds, strict=True):
        train_loss, train_accuracy, test_loss, test_accuracy = history[-1]
        print(
            f"{framework:<9}  {train_loss:13.5f}  {train_accuracy:8.2%}  {test_loss:10.5f}  "
            f"{test_accuracy:8.2%}  {spent:12.3f} s"
        )
    print(f"PyTorch's time / fnn's: {seconds[1] / seconds[0]:.1f}", flush=True)
    return histories, rows


def to_torch(arrays):
    """JAX arrays as torch tensors."""
    import torch

    return [torch.tensor(jax.device_get(array)) for array in arrays]


def torch_network(hidden, activation, weights):
    """torch.nn's counterpart of disk.make_network, with the given tensors W, b, W, b, ..."""
    import torch

    kinds = {
        "tanh": torch.nn.Tanh,
        "relu": torch.nn.ReLU,
        "leaky_relu": torch.nn.LeakyReLU,
        "sigmoid": torch.nn.Sigmoid,
    }
    layers = []
    for dim_in, dim_out in pairwise([2, *hidden, 2]):
        linear = torch.nn.Linear(dim_in, dim_out, dtype=weights[0].dtype)
        layers += [linear, kinds[activation]()]
    network = torch.nn.Sequential(*layers[:-1], torch.nn.Sigmoid())
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), weights, strict=True):
            parameter.copy_(weight)
    return network


def torch_step(network, optimizer, reduction, x, target):
    """One step of PyTorch's; returns the loss before it."""
    from torch.nn.functional import mse_loss

    optimizer.zero_grad()
    summed = reduction == "batchmean"
    loss = mse_loss(network(x), target, reduction="sum" if summed else reduction)
    loss = loss / len(x) if summed else loss
    loss.backward()
    optimizer.step()
    return loss


def torch_evaluate(network, points, targets, labels):
    """Mean squared error over all elements, and accuracy."""
    import torch
    from torch.nn.functional import mse_loss

    with torch.no_grad():
        scores = network(points)
        return mse_loss(scores, targets), (scores.argmax(dim=-1) == labels).float().mean()


def main(arguments=None):
    options = parse_options(arguments)
    return run(compare, options, options.output)


if __name__ == "__main__":
    leave(main())
