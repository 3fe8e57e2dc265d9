"""PyTorch's side of the comparisons. It is imported where it is used, and for these alone."""

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import jax


def import_torch() -> Any:
    import torch

    return torch


def require_pytorch(parser) -> None:
    """End with an error where PyTorch is not installed."""
    try:
        import_torch()
    except ImportError:
        parser.error("PyTorch is not installed; 'pip install torch' installs it")


def tensors(arrays: Iterable[jax.Array], device: str = "cpu") -> list[Any]:
    return [import_torch().tensor(jax.device_get(array), device=device) for array in arrays]


def make_network(widths: Sequence[int], activation: str) -> Any:
    """torch.nn's counterpart of disk.make_network; `activation` is the name of its class."""
    nn, layers = import_torch().nn, []
    for dim_in, dim_out in pairwise(widths):
        layers += [nn.Linear(dim_in, dim_out), getattr(nn, activation)()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


def train_step(network, optimizer, reduction: str, x, target) -> Any:
    """One step; returns the loss before it."""
    summed = reduction == "batchmean"
    mse_loss = import_torch().nn.functional.mse_loss
    optimizer.zero_grad()
    loss = mse_loss(network(x), target, reduction="sum" if summed else reduction)
    loss = loss / len(x) if summed else loss
    loss.backward()
    optimizer.step()
    return loss


def train_epoch(step: Callable[..., Any], batch_size: int, x, target) -> None:
    """Call step(x, target) with one batch after the other."""
    for batch in zip(x.split(batch_size), target.split(batch_size), strict=True):
        step(*batch)


def evaluate(network, points, targets, labels) -> tuple[Any, Any]:
    """Mean squared error over all elements, and accuracy."""
    torch = import_torch()
    with torch.no_grad():
        scores = network(points)
        mse = torch.nn.functional.mse_loss(scores, targets)
        return mse, (scores.argmax(dim=-1) == labels).float().mean()


def make_shuffled_epoch(
    widths, x, target, batch_size, device, *, threads=1, compiled=False, graph=False
):
    """A call that trains a network of these widths for one epoch, shuffled by PyTorch itself."""
    torch = import_torch()
    torch.manual_seed(0)
    network = make_network(widths, "LeakyReLU").to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    x, target = tensors((x, target), device)
    network = torch.compile(network) if compiled else network
    step = functools.partial(train_step, network, optimizer, "mean")
    if graph:  # the step is recorded once and replayed on the same two arrays
        batch = x[:batch_size].clone(), target[:batch_size].clone()
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):  # PyTorch records after a warm-up on another
            step(*batch)
        torch.cuda.synchronize()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            step(*batch)

        def step(*new):
            for old, part in zip(batch, new, strict=True):
                old.copy_(part)
            recorded.replay()

    def epoch():
        torch.set_num_threads(threads)
        order = torch.randperm(len(x), device=device)
        train_epoch(step, batch_size, x[order], target[order])
        if device == "cuda":
            torch.cuda.synchronize()

    return epoch
