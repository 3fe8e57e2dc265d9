"""Train a network on a table of one's own, and predict with it."""

import csv
import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # python -I does not look there
from shared.interrupts import die_of_interrupts

if __name__ == "__main__":
    die_of_interrupts()  # until command_line.run handles them

import jax
import jax.numpy as jnp
from shared import command_line, figures, tables
from shared.command_line import Parser, UserError, layer_width, nonnegative_float, positive_int

import fnn
from fnn.files import write_rows, write_text

FEWEST_ROWS = 10
FILES = ["params.npz", "metrics.csv", "curves.svg"]


def parse_options(arguments=None):
    parser = Parser(
        "Train a network to predict one column of a table from the others. The table is a text "
        "file with commas, semicolons or tabs between its columns. A first row without numbers "
        "names the columns. A column whose first cell is a number must have numbers alone. In any "
        "other column each text is a category, and each category is an input of the network. One "
        "row in five is held out for the test."
    )
    option = parser.add_argument
    option("file", nargs="?", type=pathlib.Path, help="the table to train on")
    option("--target", metavar="COLUMN", help="the column to predict: name, or number from 1")
    auto = f"texts, or at most {tables.MOST_CLASSES_OF_NUMBERS} whole numbers, are classes"
    tasks = ("auto", "classification", "regression")
    option("--task", choices=tasks, default="auto", help=f"auto: {auto}")
    option("--hidden", type=layer_width, nargs="+", default=[100], help="widths of hidden layers")
    option("--epochs", type=positive_int, default=200, help="passes over the training rows")
    option("--batch-size", type=positive_int, default=32, help="rows a step")
    option("--learning-rate", type=nonnegative_float, default=0.002, help="of Adam, at its highest")
    option("--weight-decay", type=nonnegative_float, default=1.0, help="of Adam, decoupled")
    help = "share of the training rows held out to choose the best epoch; 0 keeps the last epoch"
    option("--validation", type=command_line.fraction, default=0.0, help=help)
    option("--seed", type=command_line.seed, default=0, help="of rows held out and parameters")
    option("--output", type=command_line.folder, default="runs/csv", help="folder for the results")
    option("--quiet", action="store_true", help="print the summary line alone")
    help = "print a prediction for each row of this table, by the network in --output"
    option("--predict", type=pathlib.Path, metavar="FILE", help=help)
    options = parser.parse_args(arguments)
    if options.predict is None and (options.file is None or options.target is None):
        parser.error("expected a table and --target, or --predict with a table")
    if options.predict and options.file:
        parser.error("argument --predict: expected no other table")
    if options.validation == 1:
        parser.error("argument --validation: expected a number below 1, got 1")
    if options.file:
        parser.check_output(options.output, FILES)
    return options


def make_model(note):
    """The network that the note in params.npz describes. It standardizes its inputs itself."""
    widths = [len(note["mean"]), *note["hidden"], len(note["classes"] or [note["target"]])]
    layers = [fnn.Standardize(note["mean"], note["std"])]
    for dim_in, dim_out in itertools.pairwise(widths):
        layers += [fnn.Linear(dim_in, dim_out), fnn.ReLU()]
    return fnn.Sequential(*layers[:-1])


def train(options):
    path = options.file
    table = tables.read(path)
    target = tables.find_column(path, table, options.target)
    cells = table.pop(target)
    if len(cells) < FEWEST_ROWS or not table:
        got = f"{len(cells)} rows and {len(table)} columns beside the target"
        raise UserError(f"{path}: expected {FEWEST_ROWS} rows and one column or more, got {got}")
    features = tables.features(path, table)
    classes = tables.classes(path, target, cells, options.task)
    x = tables.to_inputs(path, table, features)
    if classes:
        y = tables.to_labels(path, target, cells, classes)
    else:
        y = tables.to_numbers(path, target, cells)[:, None]

    split_key, fit_key = jax.random.split(jax.random.key(jnp.uint32(options.seed)))
    (train_x, train_y), (test_x, test_y) = fnn.split(split_key, x, y, fraction=0.2)
    mean, std = (array.tolist() for array in fnn.standardize(train_x))
    note = {"target": target, "features": features, "classes": classes, "hidden": options.hidden}
    note |= {"mean": mean, "std": std}
    loss, metrics = fnn.CrossEntropyLoss(), {"accuracy": fnn.accuracy}
    if not classes:  # the network predicts a standardized target
        center, unit = fnn.standardize(train_y)
        note |= {"center": float(center[0]), "unit": float(unit[0])}
        train_y, test_y = ((part - note["center"]) / note["unit"] for part in (train_y, test_y))
        loss, metrics = fnn.MSELoss(), {"r2": fnn.r2_score}
    model = make_model(note)
    num_rows = max(1, int(len(train_x) * (1 - options.validation)))
    batch_size = min(options.batch_size, num_rows)
    if not options.quiet:
        print(fnn.summary(model, (batch_size, x.shape[1])), flush=True)

    def make_optimizer(num_steps):
        schedule = fnn.cosine_decay(options.learning_rate, num_steps)
        return fnn.adam(schedule, weight_decay=options.weight_decay)

    result = fnn.fit(
        model,
        loss,
        make_optimizer,
        train_x,
        train_y,
        epochs=options.epochs,
        batch_size=batch_size,
        key=fit_key,
        validation=options.validation or None,
        metrics=metrics,
        progress=not options.quiet,
    )
    fnn.save(options.output / "params.npz", result.params, note=note)
    write_history(options, result.history, "cross-entropy" if classes else "MSE, standardized")
    lines = summarize(note, fnn.predict(model, result.params, test_x), test_y, train_y)
    print("\n".join(lines[-1:] if options.quiet else lines))
    return 0


def summarize(note, scores, y, train_y):
    """The lines at the end: how good the predictions for the test rows are."""
    if not note["classes"]:
        error = note["unit"] * float(fnn.mean_absolute_error(scores, y))
        r2 = float(fnn.r2_score(scores, y))
        return [f"test R2 {r2:.4f}, mean absolute error {error:.4g}, {len(y)} test rows"]
    matrix = fnn.confusion_matrix(scores, y).tolist()
    width = max(len(str(cell)) for row in (note["classes"], *matrix) for cell in row)
    lines = ["test rows by class (down) and predicted class (across)"]
    for name, row in zip(note["classes"], matrix, strict=True):
        lines.append("  ".join(f"{cell:>{width}}" for cell in (name, *row)))
    accuracy, f1 = float(fnn.accuracy(scores, y)), float(fnn.f1_score(scores, y))
    most_frequent = int(jnp.argmax(jnp.bincount(train_y)))
    always = f"always {note['classes'][most_frequent]}: {float(jnp.mean(y == most_frequent)):.2%}"
    return [*lines, f"test accuracy {accuracy:.2%}, F1 {f1:.4f}, {len(y)} test rows; {always}"]


def write_history(options, history, loss_name):
    """Write the metrics of every epoch, and their curves."""
    rows = [[number, *row.values()] for number, row in enumerate(history, 1)]
    write_rows(options.output / "metrics.csv", [["epoch", *history[0]], *rows])
    panels = []
    for title, end in ((loss_name, "_loss"), ("accuracy, %", "_accuracy")):
        names = [name for name in history[0] if name.endswith(end)]
        curves = [(name.replace("_", " "), [row[name] for row in history]) for name in names]
        panels += [(title, [figures.Curve(*curve) for curve in curves])] if curves else []
    drawn = figures.learning_curves(panels, f"Training, seed {options.seed}")
    write_text(options.output / "curves.svg", drawn)


def predict(options):
    path = options.output / "params.npz"
    try:
        note = fnn.read_note(path)
        model = make_model(note)
        params = fnn.load(path, jax.eval_shape(model.init, jax.random.key(0)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: expected what this script stores: {error}") from None
    x = tables.to_inputs(options.predict, tables.read(options.predict), note["features"])
    scores = fnn.predict(model, params, x)
    if note["classes"]:
        predictions = [note["classes"][number] for number in jnp.argmax(scores, axis=-1).tolist()]
    else:
        predictions = (note["center"] + note["unit"] * scores[:, 0]).tolist()
    csv.writer(sys.stdout, lineterminator="\n").writerows([[note["target"]], *zip(predictions)])
    return 0


def main(arguments=None):
    options = parse_options(arguments)
    if options.predict:
        return command_line.run(predict, options)
    return command_line.run(train, options, options.output)


if __name__ == "__main__":
    command_line.leave(main())
