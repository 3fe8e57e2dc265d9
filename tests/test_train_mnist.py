"""scripts/train_mnist.py as a user runs it, on small data sets of its own."""

import base64
import csv
import functools
import gzip
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree
import zlib

import chex
import jax
import jax.numpy as jnp
import pytest
import train_mnist
from shared import mnist, pictures

import fnn

SVG = "{http://www.w3.org/2000/svg}"
SCRIPT = pathlib.Path(__file__).parent.parent / "scripts" / "train_mnist.py"
NAMES = [
    f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES
SMALL = ["--epochs", "3", "--batch-size", "20", "--quiet"]


def idx(values, *shape):
    """An IDX file of bytes."""
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(values)


def draw_set(seed, num_examples, height=12, width=10):
    """Noise, with a bright row at the top, in the middle or at the bottom: classes 0, 1 and 2.

    One label in ten is drawn again, so that there are mistakes to be made. As IDX files.
    """
    draw = random.Random(seed)
    labels = [draw.randrange(3) for _ in range(num_examples)]
    pixels = [
        200 if row == label * (height - 1) // 2 else draw.randrange(180)
        for label in labels
        for row in range(height)
        for _ in range(width)
    ]
    labels = [draw.randrange(3) if draw.random() < 0.1 else label for label in labels]
    return idx(pixels, num_examples, height, width), idx(labels, num_examples)


def write(folder, *contents):
    for name, content in zip(NAMES, contents, strict=True):
        (folder / name).write_bytes(content)
    return folder


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def train(data, output, *changes):
    return train_mnist.main(["--data", str(data), *SMALL, "--output", str(output), *changes])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), *draw_set(0, 240), *draw_set(1, 90))


@pytest.fixture
def changed(data, tmp_path):
    """A copy of the data, to be changed."""
    return pathlib.Path(shutil.copytree(data, tmp_path / "changed"))


@pytest.fixture(scope="module")
def cnn_run(data, tmp_path_factory):
    """A process of its own, in an empty folder."""
    folder = tmp_path_factory.mktemp("cnn")
    options = ["--data", data, "--model", "cnn", "--batch-size", 20, "--learning-rate", 0.005]
    result = subprocess.run(
        [sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return result, folder / "runs" / "mnist"


@pytest.fixture(scope="module")
def mlp_run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlp")
    assert train(data, folder) == 0
    return folder


def test_the_networks_learn(mlp_run, cnn_run):
    """Nine labels in ten are those of the bright row, and of the others one in three."""
    result, folder = cnn_run
    summary = result.stdout.splitlines()[-1]
    accuracy = re.match(
        r"test accuracy ([\d.]+)%, test loss [\d.]+, 15 epochs, 165 steps, [\d.]+ seconds$", summary
    )
    assert float(accuracy[1]) > 80
    assert float(rows(folder)[-1]["validation_accuracy"]) > 0.8
    assert float(rows(mlp_run)[-1]["validation_accuracy"]) > 0.8


def test_what_is_about_to_run_is_said_and_progress_shown(cnn_run):
    lines = cnn_run[0].stdout.splitlines()
    text = "\n".join(lines)
    for expected in (
        "Conv2d(16, 32, (3, 3))", "9,411", "3 classes, 12 by 10 pixels", "learning rate 0.005",
        "220 to train on, 20 for validation, 90 for the test", "15 epochs", "seed 0", "device",
    ):  # fmt: skip
        assert expected in text
    assert sum(bool(re.match(r"epoch +\d+/15 .* \d+:\d\d left$", line)) for line in lines) == 10
    assert max(map(len, lines)) <= 80
    assert cnn_run[0].stderr == ""


def test_metrics_have_a_row_an_epoch(cnn_run):
    table = rows(cnn_run[1])
    assert list(table[0]) == ["epoch", "train_loss", "validation_loss", "validation_accuracy"]
    assert [int(row["epoch"]) for row in table] == list(range(1, 16))
    for row in table:
        assert 0 <= float(row["validation_accuracy"]) <= 1
        assert float(row["train_loss"]) > 0
        assert float(row["validation_loss"]) > 0


@pytest.fixture(scope="module")
def trained(data, cnn_run):
    """The trained network, its parameters, its logits for the test images, and their labels."""
    _, (images, labels), num_classes = mnist.read(data)
    model = mnist.make_cnn(*images.shape[1:], num_classes, 0.2)
    like = jax.eval_shape(model.init, jax.random.key(1))
    params = fnn.load(cnn_run[1] / "params.npz", jax.tree.map(jnp.zeros_like, like))
    logits = jax.jit(lambda params, x: fnn.predict(model, params, x))(params, images)
    return model, params, images, labels, logits


def test_parameters_are_those_of_the_network_that_was_tested(trained, cnn_run):
    *_, labels, logits = trained
    assert f"test accuracy {fnn.accuracy(logits, labels):.2%}," in cnn_run[0].stdout


def test_evaluation_by_parts_is_that_of_the_whole(trained, monkeypatch):
    model, params, images, labels, logits = trained
    monkeypatch.setattr(mnist, "EVALUATED_AT_ONCE", 20)  # of 90: a rest of 10
    loss, accuracy, by_parts = jax.jit(functools.partial(mnist.evaluate, model))(
        params, images, labels
    )
    chex.assert_trees_all_close(by_parts, logits, atol=1e-5)
    chex.assert_trees_all_close(loss, fnn.CrossEntropyLoss().forward(logits, labels)[0], rtol=1e-5)
    assert accuracy == fnn.accuracy(logits, labels)


def pixels(element):
    """The rows of the grey image in an SVG <image> element."""
    content = base64.b64decode(element.get("href").removeprefix("data:image/png;base64,"))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    content, chunks = content[8:], {}
    while content:
        length, kind = struct.unpack(">I4s", content[:8])
        chunks[kind] = content[8 : 8 + length]
        (checksum,) = struct.unpack(">I", content[8 + length : 12 + length])
        assert checksum == zlib.crc32(kind + chunks[kind])
        content = content[12 + length :]
    width, height, *rest = struct.unpack(">2I5B", chunks[b"IHDR"])
    assert rest == [8, 0, 0, 0, 0]
    lines = zlib.decompress(chunks[b"IDAT"])
    size = width + 1  # a row follows the number of its filter
    assert len(lines) == height * size
    assert set(lines[::size]) == {0}
    return [list(lines[start + 1 : start + size]) for start in range(0, len(lines), size)]


def test_the_most_confident_mistakes_are_drawn(trained, cnn_run):
    *_, images, labels, logits = trained
    probabilities = jax.nn.softmax(logits)
    confidence, predicted = probabilities.max(-1), probabilities.argmax(-1)
    wrong = jnp.flatnonzero(predicted != labels)
    worst = wrong[jnp.argsort(-confidence[wrong])][: train_mnist.MOST_MISTAKES]
    root = xml.etree.ElementTree.parse(cnn_run[1] / "mistakes.svg").getroot()
    drawn = [pixels(element) for element in root.iter(f"{SVG}image")]
    assert drawn == images[worst].tolist() != []
    title, *captions = (element.text for element in root.iter(f"{SVG}text"))
    assert title == f"The {len(worst)} most confident of {len(wrong)} mistakes among 90 test images"
    assert captions == [
        caption
        for i in worst
        for caption in (f"{labels[i]}, taken for {predicted[i]}", f"with {confidence[i]:.2%}")
    ]


def test_no_mistakes_are_a_picture_too():
    svg = pictures.mistakes([], [], [], [], "none")
    assert xml.etree.ElementTree.fromstring(svg).tag == f"{SVG}svg"


def test_curves_are_drawn(cnn_run):
    root = xml.etree.ElementTree.parse(cnn_run[1] / "curves.svg").getroot()
    lines = [element.get("points").split() for element in root.iter(f"{SVG}polyline")]
    assert [len(line) for line in lines] == [15, 15, 15, 2, 2]  # the last two are the legend


def test_test_images_and_compression_do_not_change_the_bits(changed, mlp_run, tmp_path):
    write(changed, *[(changed / name).read_bytes() for name in NAMES[:2]], *draw_set(2, 7))
    for name in (TRAIN_IMAGES, TEST_LABELS):
        (changed / f"{name}.gz").write_bytes(gzip.compress((changed / name).read_bytes()))
        (changed / name).unlink()
    (changed / TRAIN_LABELS).rename(changed / TRAIN_LABELS.replace("-idx", ".idx"))
    assert train(changed, tmp_path) == 0
    for file in ("metrics.csv", "params.npz"):
        assert (tmp_path / file).read_bytes() == (mlp_run / file).read_bytes()


@pytest.mark.usefixtures("on_the_cpu")  # a GPU's programs multiply in different orders
def test_results_are_those_of_the_library_by_hand(data, tmp_path):
    """With another value for every option, from the public functions alone."""
    options = "--seed 1 --epochs 2 --batch-size 30 --learning-rate 0.002 --weight-decay 0.1"
    assert train(data, tmp_path, *options.split(), "--dropout", "0.4") == 0
    images, labels = (fnn.load_idx(data / name) for name in (TRAIN_IMAGES, TRAIN_LABELS))
    x, labels = images.reshape(240, 120).astype(jnp.float32) / 255, labels.astype(jnp.int32)
    layers = [fnn.Identity(), fnn.Identity()]  # in the place of Pixels and Flatten
    for dims in ((120, 512), (512, 256)):
        layers += [fnn.Linear(*dims), fnn.ReLU(), fnn.Dropout(0.4)]
    model, loss = fnn.Sequential(*layers, fnn.Linear(256, 3)), fnn.CrossEntropyLoss()
    optimizer = fnn.adam(fnn.cosine_decay(0.002, 2 * 8), weight_decay=0.1)
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, 30)

    @jax.jit
    def start(x, labels):
        split_key, init_key, epoch_key = jax.random.split(jax.random.key(1), 3)
        order = jax.random.permutation(split_key, 240)
        state = fnn.init_train_state(model, optimizer, init_key)
        return x[order], labels[order], state, epoch_key

    @jax.jit
    def run_epoch(state, x, labels, key):
        state, losses = train_epoch(state, x[20:], labels[20:], key)
        logits, unseen = fnn.predict(model, state.params, x[:20]), labels[:20]
        value, _ = loss.forward(logits, unseen)
        mean = (30 * losses[:7].sum() + 10 * losses[7]) / 220  # the last batch has 10 images
        return state, [mean, value, fnn.accuracy(logits, unseen)]

    x, labels, state, epoch_key = start(x, labels)
    table = []
    for epoch in (1, 2):
        state, metrics = run_epoch(state, x, labels, jax.random.fold_in(epoch_key, epoch))
        table.append([epoch, *map(float, metrics)])
    written = [[float(value) for value in row.values()] for row in rows(tmp_path)]
    chex.assert_trees_all_close(jnp.array(written), jnp.array(table), rtol=1e-4)
    saved = fnn.load(tmp_path / "params.npz", state.params)
    chex.assert_trees_all_close(saved, state.params, atol=1e-5)


def test_pixels_are_bytes_that_cannot_move():
    layer = mnist.Pixels()
    x = jnp.array([[0, 51, 255]], jnp.uint8)
    y, residuals = layer.forward((), x)
    assert y.dtype == jnp.float32
    chex.assert_trees_all_close(y, jnp.array([[[0.0], [0.2], [1.0]]]))
    grads, dx = layer.backward((), residuals, y)
    assert grads == ()
    chex.assert_trees_all_equal(dx, jnp.zeros_like(x))


def test_one_image_in_twelve_is_held_out_and_none_is_lost():
    images, labels = jnp.arange(25)[:, None, None], jnp.arange(25)
    parts = mnist.hold_out(jax.random.key(0), images, labels)
    assert [len(part) for _, part in parts] == [23, 2]
    assert all(jnp.all(part[0][:, 0, 0] == part[1]) for part in parts)
    assert sorted(parts[0][1].tolist() + parts[1][1].tolist()) == list(range(25))
    parts = mnist.hold_out(jax.random.key(0), images[:2], labels[:2])
    assert [len(part) for _, part in parts] == [1, 1]


def rewrite(name, change, source=None):
    """Replace the file by change(the content of it, or of `source`)."""
    return lambda folder: (folder / name).write_bytes(
        change((folder / (source or name)).read_bytes())
    )


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


BAD_FILES = {
    "missing": (
        lambda folder: (folder / TRAIN_LABELS).unlink(),
        f"{TRAIN_LABELS}: no such file, plain or with .gz",
    ),
    "no-folder": (shutil.rmtree, f"{TRAIN_IMAGES}: no such file, plain or with .gz"),
    "folder-for-file": (
        lambda folder: ((folder / TEST_IMAGES).unlink(), (folder / TEST_IMAGES).mkdir()),
        f"{TEST_IMAGES}: Is a directory",
    ),
    "truncated": (
        rewrite(TRAIN_IMAGES, lambda content: content[:1000]),
        f"{TRAIN_IMAGES}: expected 28800 bytes for shape (240, 12, 10), got 984 bytes",
    ),
    "too-long": (
        rewrite(TEST_LABELS, lambda content: content + b"0"),
        f"{TEST_LABELS}: expected 90 bytes for shape (90,), got more",
    ),
    "lying-gzip": (
        put(
            TRAIN_IMAGES, gzip.compress(bytes.fromhex("00000803 7fffffff 00100000 0000001c") + b"0")
        ),
        f"{TRAIN_IMAGES}: expected 63050394753826816 bytes for shape (2147483647, 1048576, 28), "
        "got 1",
    ),
    "truncated-gzip": (
        rewrite(TRAIN_IMAGES, lambda content: gzip.compress(content)[:1000]),
        f"{TRAIN_IMAGES}: Compressed file ended before",
    ),
    "no-idx": (
        put(TEST_IMAGES, b"<html>"),
        f"{TEST_IMAGES}: expected an IDX file, got one that begins with bytes 3c 68 74 6d",
    ),
    "lying-header": (
        rewrite(TRAIN_IMAGES, lambda content: content[:4] + b"\xff" * 12 + content[16:]),
        f"{TRAIN_IMAGES}: expected {(2**32 - 1) ** 3} bytes",
    ),
    "labels-for-images": (
        rewrite(TRAIN_IMAGES, bytes, TRAIN_LABELS),
        f"{TRAIN_IMAGES}: expected bytes of shape (images, height, width), got uint8 of shape "
        "(240,)",
    ),
    "images-for-labels": (
        rewrite(TEST_LABELS, bytes, TEST_IMAGES),
        f"{TEST_LABELS}: expected bytes of shape (labels), got uint8 of shape (90, 12, 10)",
    ),
    "signed": (
        rewrite(TRAIN_LABELS, lambda content: content[:2] + b"\x09" + content[3:]),
        f"{TRAIN_LABELS}: expected bytes of shape (labels), got int8 of shape (240,)",
    ),
    "test-labels-for-training": (
        rewrite(TRAIN_LABELS, bytes, TEST_LABELS),
        f"{TRAIN_LABELS}: expected 240 labels, one for each image of {TRAIN_IMAGES}, got 90",
    ),
    "empty": (
        put(TEST_IMAGES, idx([], 0, 12, 10)),
        f"{TEST_IMAGES}: expected at least one element, got shape (0, 12, 10)",
    ),
    "no-pixels": (
        put(TRAIN_IMAGES, idx([], 240, 12, 0)),
        f"{TRAIN_IMAGES}: expected at least one element, got shape (240, 12, 0)",
    ),
    "another-size": (
        put(TEST_IMAGES, draw_set(1, 90, 11)[0]),
        f"{TEST_IMAGES}: expected images of shape (12, 10), as the training images, got (11, 10)",
    ),
    "another-class": (
        put(TEST_LABELS, idx([3] * 90, 90)),
        f"{TEST_LABELS}: expected labels up to 2, the largest training label, got 3",
    ),
    "one-class": (
        put(TRAIN_LABELS, idx([0] * 240, 240)),
        f"{TRAIN_LABELS}: expected at least two classes, got 0 alone",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_ends_in_one_line_that_names_it_and_status_2(
    spoil, message, changed, tmp_path, capsys
):
    spoil(changed)
    assert train(changed, tmp_path / "output") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {changed}/{message}" in err
    assert err.count("\n") == 1


def test_images_too_large_for_memory_are_told_by_name(data, tmp_path, capsys, monkeypatch):
    def load_idx(path, **options):
        raise MemoryError

    monkeypatch.setattr(fnn, "load_idx", load_idx)
    assert train(data, tmp_path) == 2
    message = f"error: {data / TRAIN_LABELS}: there is not enough memory to read it\n"
    assert capsys.readouterr().err.endswith(message)


def test_bad_data_leave_the_older_checkpoint(changed, mlp_run, tmp_path):
    output = shutil.copytree(mlp_run, tmp_path / "output")
    (changed / TRAIN_IMAGES).unlink()
    assert train(changed, output) == 2
    assert (output / "checkpoint.npz").exists()


@pytest.mark.parametrize(
    ("losses", "num_examples", "expected"),
    [([1, 2, 6], 10, 2.4), ([1, 2, 3, 4], 16, 2.5), ([5], 2, 5.0)],
)
def test_the_mean_of_the_losses_weighs_examples_equally(losses, num_examples, expected):
    """The batches have 4 examples, but the last may have fewer."""
    mean = mnist.mean_over_examples(jnp.array(losses, jnp.float32), num_examples, 4)
    assert float(mean) == pytest.approx(expected)


def test_a_batch_of_more_than_all_images_is_refused(data, tmp_path, capsys):
    assert train(data, tmp_path, "--batch-size", "221") == 2
    message = "argument --batch-size: expected at most the 220 training images, got 221\n"
    assert capsys.readouterr().err.endswith(message)


def test_images_too_small_for_the_cnn_are_refused(tmp_path, capsys):
    write(tmp_path, *draw_set(0, 40, 9, 30), *draw_set(1, 5, 9, 30))
    assert train(tmp_path, tmp_path / "output", "--model", "cnn") == 2
    message = "argument --model: cnn takes images of at least 10 by 10 pixels, got 9 by 30\n"
    assert capsys.readouterr().err.endswith(message)


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, capsys):
    assert train(data, tmp_path, "--learning-rate", "1e30") == 1
    out, err = capsys.readouterr()
    assert out == ""
    place = "first met: layer 5 Linear(512, 256), forward"
    assert f"the loss is not finite in epoch 1 ({place}): lower --learning-rate; " in err
    assert err.count("\n") == 1
    assert len(rows(tmp_path)) == 1
    assert (tmp_path / "params.npz").exists()


def test_a_resumed_run_ends_with_the_same_bits(data, tmp_path, monkeypatch):
    whole, broken, save = tmp_path / "whole", tmp_path / "broken", fnn.save

    def save_and_break_off(*arguments, **options):
        save(*arguments, **options)
        raise KeyboardInterrupt

    assert train(data, whole, "--epochs", "3") == 0
    with monkeypatch.context() as patch:
        patch.setattr(fnn.loop, "save", save_and_break_off)
        assert train(data, broken, "--epochs", "3") == 130
    assert not (broken / "params.npz").exists()
    assert train(data, broken, "--epochs", "3", "--resume") == 0
    for name in ("metrics.csv", "params.npz"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_examples_read_in_parts_have_the_same_checksum(data):
    (path, labels), _, _ = mnist.read(data)
    order = jax.random.permutation(jax.random.key(0), len(labels))
    images, _, checksums = mnist.read_examples(path, order, labels[order])
    chex.assert_trees_all_equal(images, fnn.load_idx(path)[order])
    parts = [mnist.read_examples(path, part, labels[part]) for part in jnp.split(order, 3)]
    chex.assert_trees_all_equal(jnp.concatenate([part[0] for part in parts]), images)
    assert jnp.sum(checksums) == sum(jnp.sum(part[2]) for part in parts)


@pytest.mark.parametrize(
    "change",
    [
        rewrite(TRAIN_IMAGES, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        rewrite(TRAIN_LABELS, lambda content: content[:-1] + bytes([(content[-1] + 1) % 3])),
        rewrite(TEST_IMAGES, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        lambda folder: (
            rewrite(TRAIN_IMAGES, lambda file: file[:16] + file[136:] + file[16:136])(folder),
            rewrite(TRAIN_LABELS, lambda file: file[:8] + file[9:] + file[8:9])(folder),
        ),
    ],
    ids=["pixel", "label", "test pixel", "order"],
)
def test_a_checkpoint_of_other_images_is_refused(change, changed, mlp_run, tmp_path, capsys):
    output = shutil.copytree(mlp_run, tmp_path / "output")
    change(changed)
    assert train(changed, output, "--resume") == 2
    assert "is from a run with data checksum" in capsys.readouterr().err


def test_help_gives_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit):
        train_mnist.main(["--help"])
    text = capsys.readouterr().out
    for option in (
        "--data", "--model", "--seed", "--epochs", "--batch-size", "--learning-rate",
        "--weight-decay", "--dropout", "--output", "--checkpoint-every", "--resume",
        "--data-parallel", "--coordinator", "--num-processes", "--process-id", "--start-timeout",
        "--epoch-timeout", "--fast", "--quiet",
    ):  # fmt: skip
        assert f"  {option}" in text
    assert " ".join(text.split()).count("(default: ") == 18
