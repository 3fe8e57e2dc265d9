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


def tokens(arrays: Iterable[jax.Array]) -> list[Any]:
    """Tensors of int64, which PyTorch takes for indices."""
    return [tensor.long() for tensor in tensors(arrays)]


def make_network(widths: Sequence[int], activation: str) -> Any:
    """torch.nn's counterpart of disk.make_network; `activation` is the name of its class."""
    nn, layers = import_torch().nn, []
    for dim_in, dim_out in pairwise(widths):
        layers += [nn.Linear(dim_in, dim_out), getattr(nn, activation)()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


def make_gpt(size: int, *, layers: int, dim: int, heads: int, context: int) -> Any:
    """torch.nn's counterpart of text.make_gpt, tied and without dropout."""
    nn = import_torch().nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

        def forward(self, x):
            q, k, v = self.first(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.last(y.transpose(1, 2).flatten(2))

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(size, dim), nn.Embedding(context, dim)
            blocks = []
            for _ in range(layers):
                network = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
                blocks.append(Residual(nn.LayerNorm(dim), Attention()))
                blocks.append(Residual(nn.LayerNorm(dim), *network))
            self.body = nn.Sequential(*blocks, nn.LayerNorm(dim))

        def forward(self, x):
            x = self.tokens(x) + self.positions.weight[: x.shape[1]]
            return nn.functional.linear(self.body(x), self.tokens.weight)

    return GPT()


def gpt_leaves(network) -> list[Any]:
    """The parameters in the order of fnn's leaves: by name, so a norm's bias before its scale."""
    norm, leaves = import_torch().nn.LayerNorm, []
    for module in network.modules():
        own = [*module.parameters(recurse=False)]
        leaves += reversed(own) if isinstance(module, norm) else own
    return leaves


def train_step(network, optimizer, reduction: str, x, target) -> Any:
    """One step; returns the loss before it."""
    summed = reduction == "batchmean"
    mse_loss = import_torch().nn.functional.mse_loss
    loss = mse_loss(network(x), target, reduction="sum" if summed else reduction)
    return _descend(optimizer, loss / len(x) if summed else loss)


def train_gpt_step(optimizer, network, x, target) -> Any:
    """One step with tokens x and target (batch, time); returns the loss before it."""
    cross_entropy = import_torch().nn.functional.cross_entropy
    return _descend(optimizer, cross_entropy(network(x).flatten(0, 1), target.flatten()))


def evaluate_gpt(network, windows) -> float:
    """The mean cross-entropy of the next token over windows (n, context + 1), 64 at a time."""
    torch = import_torch()
    cross_entropy, total = torch.nn.functional.cross_entropy, 0.0
    with torch.no_grad():
        for part in windows.split(64):
            scores = network(part[:, :-1]).flatten(0, 1)
            total += cross_entropy(scores, part[:, 1:].flatten()).item() * len(part)
    return total / len(windows)


def _descend(optimizer, loss):
    optimizer.zero_grad()
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
