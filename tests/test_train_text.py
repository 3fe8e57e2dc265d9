"""scripts/train_text.py as a user runs it, on small texts of its own."""

import collections
import contextlib
import csv
import itertools
import math
import random
import re
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import processes
import pytest
import test_distributed
import train_text
from shared import text, training

import fnn

SCRIPT = processes.SCRIPTS / "train_text.py"
SIZES = ["--layers", "1", "--dim", "16", "--heads", "2", "--context", "8"]
TRAINING = "--seed 1 --epochs 3 --steps 20 --batch-size 16 --learning-rate 0.02 --warmup 0.25"
OTHERS = "--max-norm 0.5 --weight-decay 0.3 --dropout 0.1 --checkpoint-every 2 --quiet"
SMALL = [*SIZES, *TRAINING.split(), *OTHERS.split()]


@pytest.fixture(scope="module", autouse=True)
def short_samples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_text, "CHARACTERS_AT_CHECKPOINT", 30)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """1500 characters of words that are drawn at random."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("data") / "words.txt"
    words = draw.choices(["the", "cat", "sat", "on", "mat,\n", "naïve", "dog"], k=500)
    path.write_text(" ".join(words)[:1500])
    return path


def train(data, output, *changes):
    return train_text.main(["--data", str(data), *SMALL, "--output", str(output), *changes])


def write(capsys, folder, *options):
    """What --sample prints."""
    capsys.readouterr()
    assert train_text.main(["--from", str(folder / "params.npz"), *map(str, options)]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of the gpt, and what it printed."""
    folder = tmp_path_factory.mktemp("gpt")
    assert train(data, folder) == 0
    return folder


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def stored(folder):
    """The model and the parameters of a run, from params.npz."""
    model = train_text.make_model(fnn.read_note(folder / "params.npz"))
    like = jax.eval_shape(model.init, jax.random.key(0))
    return model, fnn.load(folder / "params.npz", like)


def entropy(characters):
    """Bits per character by the frequencies of the characters alone."""
    counts = collections.Counter(characters).values()
    return -sum(n / len(characters) * math.log2(n / len(characters)) for n in counts)


@pytest.mark.parametrize("model", ["gpt", "lstm"])
def test_the_models_learn_more_than_how_frequent_characters_are(model, data, run, tmp_path):
    folder = run
    if model == "lstm":
        folder = tmp_path
        assert train(data, folder, "--model", model) == 0
    last = rows(folder)[-1]
    assert last["validation_bits"] < 0.8 * entropy(data.read_text()[-150:])
    assert last["train_bits"] < 0.8 * entropy(data.read_text()[:-150])
    assert 0.3 < last["validation_accuracy"] < 1


def test_validation_is_the_mean_over_windows_of_the_last_tenth(data, run):
    """Computed by hand, for one window after the other."""
    model, params = stored(run)
    note = fnn.read_note(run / "params.npz")
    whole = data.read_text()
    assert note["vocabulary"] == "".join(sorted({*whole}))
    tokens = [note["vocabulary"].index(character) for character in whole[-150:]]
    bits, hits = [], []
    predict = jax.jit(lambda x: jax.nn.log_softmax(fnn.predict(model, params, x)))
    for start in range(0, 149 - 8 + 1, 8):
        log_p = predict(jnp.array(tokens[start : start + 8])).tolist()
        for row, target in zip(log_p, tokens[start + 1 : start + 9], strict=True):
            bits.append(-row[target] / math.log(2))
            hits.append(row[target] == max(row))
    assert len(bits) == 144
    last = rows(run)[-1]
    assert last["validation_bits"] == pytest.approx(sum(bits) / 144, rel=1e-5)
    assert last["validation_accuracy"] == pytest.approx(sum(hits) / 144, rel=1e-5)


def test_training_is_that_of_the_library_by_hand(data, run):
    """The first epoch, from the public functions."""
    model, _ = stored(run)
    init_key, key, _ = jax.random.split(jax.random.key(1), 3)
    key = jax.random.fold_in(key, 1)
    whole = data.read_text()
    tokens = jnp.array([*map("".join(sorted({*whole})).index, whole[:1350])])
    adam = fnn.adam(fnn.cosine_decay(0.02, 60, 15), b2=0.99, weight_decay=0.3)
    optimizer = fnn.clip_by_global_norm(adam, 0.5)
    run_epoch = fnn.make_train_epoch(model, fnn.CrossEntropyLoss(), optimizer, 16, shuffle=False)

    @jax.jit
    def train(tokens):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, 2), i))
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(tokens) - 8))
        starts = draw(keys(jnp.arange(320)))
        places = starts[:, None] + jnp.arange(9)[None]
        state = fnn.init_train_state(model, optimizer, init_key)
        return run_epoch(state, tokens[places[:, :-1]], tokens[places[:, 1:]], key)

    _, losses = train(tokens)
    bits = float(losses.mean()) / math.log(2)
    assert rows(run)[0]["train_bits"] == pytest.approx(bits, rel=1e-4)


def test_a_resumed_run_ends_with_the_same_bits(data, run, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def interrupted_at_once(heard):
        yield lambda: signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(fnn, "interruptions", interrupted_at_once)
        assert train(data, tmp_path) == 128 + signal.SIGTERM
    assert len(rows(tmp_path)) == 1
    assert train(data, tmp_path, "--resume", "--temperature", "0.5") == 0  # of samples alone
    for name in ("metrics.csv", "params.npz", training.CHECKPOINT, "curves.svg"):
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def test_a_sample_is_stored_with_every_checkpoint(run):
    samples = sorted(run.glob("sample_*.txt"))
    assert [path.name for path in samples] == ["sample_0002.txt", "sample_0003.txt"]
    assert all(len(path.read_text()) == 31 for path in samples)  # one more ends the line


def test_the_same_seed_writes_the_same_text(run, capsys):
    first = write(capsys, run, "--sample", 30, "--seed", 1)
    assert first == (run / "sample_0003.txt").read_text()
    assert first == write(capsys, run, "--sample", 30, "--seed", 1)
    assert first != write(capsys, run, "--sample", 30, "--seed", 2)


def test_at_temperature_0_each_character_is_the_most_likely(run, capsys):
    """The model sees the last 8 characters."""
    model, params = stored(run)
    vocabulary, written = fnn.read_note(run / "params.npz")["vocabulary"], "the naïve"
    predict = jax.jit(lambda x: fnn.predict(model, params, x)[-1])
    for _ in range(10):
        x = jnp.array([*map(vocabulary.index, written[-8:])])
        written += vocabulary[int(predict(x).argmax())]
    options = ["--sample", 10, "--prompt", "the naïve"]
    for greedy in (["--temperature", 0], ["--top-k", 1]):
        assert write(capsys, run, *options, *greedy) == written + "\n"


def pairs(table, prompt, **how):
    """Each token and the next one, of a sample from a table of logits."""
    model, table = fnn.Embedding(*table.shape), {"W": table}
    how = {"length": 200, "context": 4, "temperature": 1.0, "top_k": None} | how
    tokens = text.sample(model, table, jax.random.key(0), jnp.array(prompt), **how)
    return [*itertools.pairwise([prompt[-1], *tokens.tolist()])]


def test_only_the_k_most_likely_are_drawn_and_temperature_sharpens():
    table = jnp.array([[0.0, 1.0, 2.0], [3.0, 2.0, 1.0], [0.0, 9.0, 9.0]])
    assert {*pairs(table, [0], top_k=2)} == {(0, 1), (0, 2), (1, 0), (1, 1), (2, 1), (2, 2)}
    assert {*pairs(table, [0], top_k=99)} > {*pairs(table, [0], top_k=2)}
    assert {*pairs(table, [0], temperature=1e-30)} == {(0, 2), (2, 1), (1, 0)} or {(0, 2), (2, 2)}
    flat = jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0]]))
    for temperature, share in ((1.0, 3 / 4), (0.5, 9 / 10), (2.0, 0.634)):
        drawn = [token for _, token in pairs(flat, [0], temperature=temperature, length=2000)]
        assert sum(drawn) / 2000 == pytest.approx(share, abs=0.03)


def test_the_window_moves_with_the_text():
    """A model that says again what it saw three characters before."""

    def forward(params, x, key=None):
        return jax.nn.one_hot(jnp.roll(x, 2), 9), ()

    echo = fnn.Linear(1, 1)._replace(forward=forward)
    how = {"length": 7, "context": 4, "temperature": 0, "top_k": None}
    for prompt in ([1, 2, 3], [5, 7, 8, 1, 2, 3]):
        tokens = text.sample(echo, (), jax.random.key(0), jnp.array(prompt), **how)
        assert tokens.tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_two_processes_train_as_one(data, run, tmp_path):
    port = test_distributed.free_port()
    options = [*SMALL, "--data", data, "--coordinator", f"127.0.0.1:{port}", "--num-processes", 2]
    folders = tmp_path / "first", tmp_path / "unused"
    results = test_distributed.finish(
        *[
            test_distributed.start([SCRIPT, *options, "--process-id", number, "--output", folder])
            for number, folder in enumerate(folders)
        ]
    )
    assert [(status, errors) for status, _, errors in results] == [(0, ""), (0, "")]
    chex.assert_trees_all_close(rows(folders[0]), rows(run), rtol=1e-3)
    assert not folders[1].exists()


def test_without_a_file_the_text_is_pythons_documentation(tmp_path):
    options = [*SIZES, "--epochs", "1", "--steps", "2"]
    status, output, errors = processes.run([SCRIPT, *options], folder=tmp_path)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert max(map(len, lines[: lines.index("")])) <= 100
    for expected in (
        "Tied.2.Residual.1.1 ", "Attention(2, causal=True)", "Tied  ",
        "Python's own documentation: ", "characters to train on", "learning rate 0.004",
    ):  # fmt: skip
        assert expected in output
    progress = r"^epoch 1/1  train \d\.\d{3} bits  val \d\.\d{3} bits acc +\d+\.\d\d%  0:00 left$"
    assert re.search(progress, output, re.MULTILINE)
    assert (tmp_path / "runs/text/sample_0001.txt").read_text() in output
    end = r"validation \d\.\d{4} bits per character, accuracy [\d.]+%, 1 epochs, 2 steps, .*seconds"
    assert re.fullmatch(end, lines[-1])


def body():
    return fnn.Sequential(fnn.Linear(3, 3), fnn.Tanh(), fnn.Dropout(0.5))


def test_tied_is_a_layer():
    layer, x = text.Tied(5, 3, body()), jnp.array([[0, 4, 2, 2], [1, 1, 3, 0]])
    fnn.check_layer(layer, x, jax.random.key(0))
    assert repr(layer).startswith("Tied(Sequential(\n  0: Linear(3, 3),")
    assert repr(layer.rebuild(fnn.Tanh())) == "Tied(Tanh())"
    table = fnn.summary(layer, x.shape, x.dtype).splitlines()
    assert [line.split()[0] for line in table[1:]] == [
        "Tied.0",
        "Tied.1",
        "Tied.2",
        "Tied",
        "total",
    ]
    assert table[-1].split()[1] == "27"


def test_both_paths_through_tied_reach_its_gradient():
    layer, x, key = text.Tied(5, 3, body()), jnp.array([0, 4, 2, 2]), jax.random.key(1)

    @jax.jit
    def both_gradients():
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), layer.init(key))
        y, residuals = layer.forward(params, x, key)
        dy = jax.random.normal(key, y.shape)
        grads, dx = layer.backward(params, residuals, dy)
        _, pull_back = jax.vjp(lambda params: layer.forward(params, x, key)[0], params)
        return grads, *pull_back(dy), dx

    with jax.enable_x64(True):
        grads, expected, dx = both_gradients()
        chex.assert_trees_all_close(grads, expected, rtol=1e-10)
    chex.assert_trees_all_equal(dx, jnp.zeros_like(x))


def test_tokens_take_no_more_bytes_than_they_need():
    for size, dtype in ((256, jnp.uint8), (257, jnp.uint16), (2**16 + 1, jnp.int32)):
        vocabulary = "".join(map(chr, range(1, size + 1)))
        tokens = text.encode(vocabulary[-3:] + vocabulary[0], vocabulary)
        assert tokens.dtype == dtype
        assert tokens.tolist() == [size - 3, size - 2, size - 1, 0]


def test_windows_are_pieces_of_the_text_that_their_numbers_alone_decide():
    tokens, key = jnp.arange(20), jax.random.key(0)
    x, target = text.draw_windows(tokens, jnp.arange(300), key, 4)
    assert jnp.all(target == x + 1)
    assert jnp.all(x == x[:, :1] + jnp.arange(4)[None])
    assert {*x[:, 0].tolist()} == {*range(16)}  # the last target is the last token
    some, _ = text.draw_windows(tokens, jnp.array([7, 299]), key, 4)
    chex.assert_trees_all_equal(some, x[jnp.array([7, 299])])
    assert text.consecutive_windows(tokens, 9).tolist() == [[*range(10)], [*range(9, 19)]]


def test_what_the_results_depend_on_is_a_setting(tmp_path):
    options = train_text.parse_options(["--output", str(tmp_path), "--untied"])
    assert [name for name in training.settings(options) if name not in training.JAX_SETTINGS] == [
        "layers", "dim", "model", "heads", "context", "untied", "dropout", "seed", "epochs",
        "steps", "batch_size", "learning_rate", "warmup", "weight_decay", "max_norm",
    ]  # fmt: skip


BAD_TEXTS = {
    "missing": (None, "words.txt: No such file or directory"),
    "empty": (b"", "words.txt: expected text, got an empty file"),
    "latin-1": ("naïve".encode("latin-1"), "expected text in UTF-8, got the byte 0xef at 2"),
    "short": (b"ab" * 44, "--data: expected at least 90 characters for --context 8, got 88"),
    "one-kind": (b"a" * 90, "--data: expected different characters, got 'a' alone"),
    "prompt": (b"ab" * 45, "--prompt: expected characters of the text, got 'h', 'é'"),
}


@pytest.mark.parametrize(("content", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS.keys())
def test_a_bad_text_is_told_in_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    assert train(path, tmp_path / "output", "--prompt", "bahé") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


BAD_PARAMS = {
    "missing": (lambda path: path.unlink(), "No such file or directory"),
    "text": (lambda path: path.write_text("text"), "File is not a zip file"),
    "no-note": (lambda path: fnn.save(path, ()), "there is no note of a model of text"),
    "other-note": (lambda path: fnn.save(path, (), note={"mean": 0}), "there is no note"),
    "other-params": (
        lambda path: fnn.save(path, (), note=fnn.read_note(path)),
        "expected what this script stores: ",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_PARAMS.values(), ids=BAD_PARAMS.keys())
def test_bad_parameters_are_told_in_one_line(spoil, message, run, tmp_path, capsys):
    path = shutil.copy(run / "params.npz", tmp_path)
    spoil(tmp_path / "params.npz")
    assert train_text.main(["--sample", "5", "--from", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {path}: " in err
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_character_to_go_on_from_is_told(run, capsys):
    arguments = ["--sample", "5", "--from", str(run / "params.npz"), "--prompt", "a\n€"]
    assert train_text.main(arguments) == 2
    assert "--prompt: expected characters of the text, got '€'\n" in capsys.readouterr().err


def test_a_checkpoint_of_another_text_is_refused(data, run, tmp_path, capsys):
    shutil.copy(run / training.CHECKPOINT, tmp_path)
    other = tmp_path / "other.txt"
    other.write_text(data.read_text().replace("n", "m"))
    assert train(other, tmp_path, "--resume") == 2
    assert "is from a run with data checksum" in capsys.readouterr().err


def test_numbers_that_are_not_finite_are_looked_for_in_the_same_windows(
    data, tmp_path, capsys, monkeypatch
):
    given = {}

    def find(model, loss, optimizer, batch_size, state, x, target, key, *, shuffle):
        given.update(x=x, target=target, batch_size=batch_size, shuffle=shuffle)
        return "Tied.4", "forward"

    monkeypatch.setattr(fnn, "find_nonfinite_in_epoch", find)
    monkeypatch.setattr(fnn.loop, "is_finite", lambda tree: False)
    assert train(data, tmp_path) == 1
    message = "the loss is not finite in epoch 1 (first met: layer Tied.4, forward): lower --lear"
    assert message in capsys.readouterr().err
    assert (given["batch_size"], given["shuffle"]) == (16, False)
    whole = data.read_text()
    tokens = text.encode(whole, "".join(sorted({*whole})))[:1350]
    _, key, _ = jax.random.split(jax.random.key(1), 3)
    key = jax.random.fold_in(jax.random.fold_in(key, 1), 2)
    expected = text.draw_windows(tokens, jnp.arange(320), key, 8)
    chex.assert_trees_all_equal((given["x"], given["target"]), expected)


@pytest.mark.parametrize("changes", [{}, {"untied": True}, {"model": "lstm"}], ids=str)
def test_the_default_sizes_of_a_model(changes, tmp_path):
    arguments = ["--model", changes.get("model", "gpt"), "--output", str(tmp_path)]
    note = vars(train_text.parse_options(arguments)) | changes | {"vocabulary": "a" * 103}
    params = jax.eval_shape(train_text.make_model(note).init, jax.random.key(0))
    size = {"{}": 814_720, "{'untied': True}": 828_007, "{'model': 'lstm'}": 1_103_463}
    assert fnn.count_params(params) == size[str(changes)]


def test_a_text_without_lines_begins_with_its_first_character():
    assert text.encode_prompt("", "abc").tolist() == [0]
    assert text.encode_prompt("", "\t\nabc").tolist() == [1]
