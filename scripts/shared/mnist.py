"""Images and labels in four IDX files, as MNIST's, and networks that tell the classes apart."""

import functools
import os
import pathlib
import zlib
from itertools import pairwise

import jax
import jax.numpy as jnp
from shared.command_line import UserError

import fnn

HIDDEN = [512, 256]  # widths of the mlp
CHANNELS, DENSE = [16, 32], 128  # of the cnn's convolutions, and the width after them
EVALUATED_AT_ONCE = 500  # images
AXES = ("images", "height", "width")  # of a file of images


def read(folder: pathlib.Path):
    """The training set, the test set and the number of classes of the data in `folder`.

    The test set is (images, labels): bytes (n, height, width) and int32 (n,). The training set is
    (path, labels), the path for read_examples. The number of classes is one more than the largest
    training label.

    Raises:
        UserError: a file is missing, is no IDX file of bytes, or does not fit the others.
    """
    (train_path, _), (train_images, train_labels) = _read_set(folder, "train", fnn.idx_shape)
    (images_path, labels_path), test_set = _read_set(folder, "t10k", fnn.load_idx)
    (_, *size), (_, *test_size) = train_images.shape, test_set[0].shape
    expected = f"images of shape {tuple(size)}, as the training images"
    _check(test_size == size, images_path, expected, tuple(test_size))
    largest, test_largest = int(train_labels.max()), int(test_set[1].max())
    expected = f"labels up to {largest}, the largest training label"
    _check(test_largest <= largest, labels_path, expected, test_largest)
    return (train_path, train_labels), test_set, largest + 1


def read_examples(path: pathlib.Path, numbers: jax.Array, labels: jax.Array):
    """The images with these numbers (n,) in the file, their labels (n,), and a checksum of each.

    A checksum is made of the pixels, the label and the number. Their sum over all examples is
    another one for other data, and the same whichever process reads which images.

    Raises:
        UserError: the file is corrupt.
    """
    numbers = numbers.tolist()
    images = _read_bytes(path, AXES, functools.partial(fnn.load_idx, examples=numbers))
    checksums = map(
        zlib.crc32,
        jax.device_get(images),
        (256 * number + label for number, label in zip(numbers, labels.tolist(), strict=True)),
    )
    return images, labels, jnp.array([*checksums], jnp.uint32)


def _read_set(folder, prefix, load_images):
    images_path = _find(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _find(folder, f"{prefix}-labels-idx1-ubyte")
    images = _read_bytes(images_path, AXES, load_images)
    labels = _read_bytes(labels_path, ("labels",), fnn.load_idx).astype(jnp.int32)
    expected = f"{len(images)} labels, one for each image of {images_path.name}"
    _check(len(labels) == len(images), labels_path, expected, len(labels))
    is_right = prefix == "t10k" or labels.max() > labels.min()
    _check(is_right, labels_path, "at least two classes", f"{labels[0]} alone")
    return (images_path, labels_path), (images, labels)


def _find(folder, name):
    """The path of the file, which may be compressed, or have a dot before "idx"."""
    names = [f"{base}{end}" for base in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for path in map(folder.joinpath, names):
        if os.path.exists(path):  # False also for a name that is too long
            return path
    raise UserError(f"{folder / name}: no such file, plain or with .gz")


def _read_bytes(path, axes, load):
    try:
        array = load(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except MemoryError:
        raise UserError(f"{path}: there is not enough memory to read it") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    is_right = array.dtype == jnp.uint8 and array.ndim == len(axes)
    got = f"{array.dtype} of shape {array.shape}"
    _check(is_right, path, f"bytes of shape ({', '.join(axes)})", got)
    _check(array.size, path, "at least one element", f"shape {array.shape}")
    return array


def _check(is_right, path, expected, got):
    if not is_right:
        raise UserError(f"{path}: expected {expected}, got {got}")


@functools.partial(jax.jit, static_argnames="multiple")
def hold_out(key, images, labels, *, multiple: int = 1):
    """Training and validation sets: one example in twelve, and at least one, is for validation.

    So are as many more that the number of training examples is a multiple of `multiple`. Numbers
    of images do as well as images.
    """
    num_held_out = max(1, len(images) // 12)
    num_held_out += (len(images) - num_held_out) % multiple
    order = jax.random.permutation(key, len(images))
    parts = order[num_held_out:], order[:num_held_out]
    return [(images[part], labels[part]) for part in parts]


def Pixels() -> fnn.Layer:
    """y = x / 255 in float32, with an axis of one channel; dx = 0, because bytes cannot move.

    Shapes: x (..., height, width), bytes; y (..., height, width, 1); params ().
    """

    def init(key):
        return ()

    def forward(params, x, key=None):
        return x[..., None].astype(jnp.float32) / 255, x

    def backward(params, x, dy):
        return (), jnp.zeros_like(x)

    return fnn.Layer(init, forward, backward)


def make_mlp(height: int, width: int, num_classes: int, dropout: float) -> fnn.Layer:
    """Linear layers, with ReLU and Dropout after each but the last."""
    layers = [Pixels(), fnn.Flatten()]
    widths = [height * width, *HIDDEN]
    for dim_in, dim_out in pairwise(widths):
        layers += [fnn.Linear(dim_in, dim_out), fnn.ReLU(), fnn.Dropout(dropout)]
    return fnn.Sequential(*layers, fnn.Linear(widths[-1], num_classes))


def make_cnn(height: int, width: int, num_classes: int, dropout: float) -> fnn.Layer:
    """Two 3x3 convolutions, with ReLU and 2x2 max-pooling after each, and two Linear layers."""
    if min(height, width) < 10:
        raise UserError(
            "argument --model: cnn takes images of at least 10 by 10 pixels, "
            f"got {height} by {width}"
        )
    layers = [Pixels()]
    for in_channels, out_channels in pairwise([1, *CHANNELS]):
        layers += [fnn.Conv2d(in_channels, out_channels, 3), fnn.ReLU(), fnn.MaxPool2d(2)]
        height, width = (height - 2) // 2, (width - 2) // 2
    layers += [fnn.Flatten(), fnn.Linear(height * width * CHANNELS[-1], DENSE), fnn.ReLU()]
    return fnn.Sequential(*layers, fnn.Dropout(dropout), fnn.Linear(DENSE, num_classes))


MODELS = {"mlp": make_mlp, "cnn": make_cnn}


def evaluate(model: fnn.Layer, params, images, labels):
    """Mean cross-entropy, accuracy, and the logits (n, classes), a few images at a time."""
    logits = fnn.predict(model, params, images, batch_size=EVALUATED_AT_ONCE)
    loss, _ = fnn.CrossEntropyLoss().forward(logits, labels)
    return loss, fnn.accuracy(logits, labels), logits


def mean_over_examples(losses, num_examples: int, batch_size: int):
    """The mean over the examples of losses (steps,) that are means over batches.

    The last batch may be smaller than the others.
    """
    sizes = jnp.full(len(losses), batch_size).at[-1].add(num_examples - len(losses) * batch_size)
    return jnp.sum(losses * sizes.astype(losses.dtype)) / num_examples


def test(model: fnn.Layer, params, images, labels, most_mistakes: int):
    """Mean cross-entropy, accuracy, predicted classes (n,), number of mistakes, and the mistakes.

    The mistakes are (images, labels, predicted classes, probabilities), the most probable first,
    each (min(most_mistakes, n), ...). Those beyond the number of mistakes are no mistakes.
    """
    loss, accuracy, logits = evaluate(model, params, images, labels)
    predicted = jnp.argmax(logits, axis=-1)
    probability = jnp.max(jax.nn.softmax(logits), axis=-1)
    wrong = predicted != labels
    most_mistakes = min(most_mistakes, len(labels))
    _, indices = jax.lax.top_k(jnp.where(wrong, probability, -1), most_mistakes)
    mistakes = [part[indices] for part in (images, labels, predicted, probability)]
    return loss, accuracy, predicted, jnp.sum(wrong), mistakes
