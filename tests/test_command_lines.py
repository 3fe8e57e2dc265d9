"""Bad command lines of every script: one line on stderr that says what is right, status 2.

And what goes wrong around them: no traceback there either.
"""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys

import benchmark
import compare_gpt
import compare_pytorch
import grid_search
import processes
import pytest
import record_gpt2
import record_pytorch
import record_torchvision
import train_disk
import train_mnist
import train_text
from processes import SCRIPTS
from shared import command_line, pytorch

from fnn import files

PROGRAMS = sorted(path.name for path in SCRIPTS.glob("*.py"))
BAD = {
    train_disk: {
        "--epochs 0": "argument --epochs: expected an integer from 1 to 2147483647, got '0'",
        "--epochs many": "argument --epochs: expected an integer from 1 to 2147483647, got 'many'",
        "--epochs": "argument --epochs: expected one argument",
        "--batch-size 1001": "argument --batch-size: expected at most the 1000 training points",
        "--learning-rate -0.1": "argument --learning-rate: expected a number from 0 to 3e38",
        "--learning-rate -1e-3": "argument --learning-rate: expected a number from 0 to 3e38",
        "--learning-rate 1e39": "argument --learning-rate: expected a number from 0 to 3e38",
        "--learning-rate nan": "argument --learning-rate: expected a number from 0 to 3e38",
        "--momentum -1": "argument --momentum: expected a number from 0 to 3e38",
        "--weight-decay inf": "argument --weight-decay: expected a number from 0 to 3e38",
        "--activation swish": "argument --activation: invalid choice: 'swish' (choose from",
        "--schedule step": "argument --schedule: invalid choice: 'step' (choose from",
        "--reduction none": "argument --reduction: invalid choice: 'none' (choose from",
        "--hidden": "argument --hidden: expected at least one argument",
        "--hidden 25 0": "argument --hidden: expected an integer from 1 to 65536, got '0'",
        "--seed -1": "argument --seed: expected an integer from 0 to 4294967295, got '-1'",
        "--train-size 1.5": "argument --train-size: expected an integer from 1",
        "--checkpoint-every 0": "argument --checkpoint-every: expected an integer from 1",
        "--checkpoint-every": "argument --checkpoint-every: expected one argument",
        "--resume 3": "unrecognized arguments: 3",
        "--output=": "argument --output: expected the name of a folder, got ''",
        "--train-size 2147483647": "argument --train-size: expected an integer from 1 to 100000000",
        f"--output {'x/' * 1000}": "argument --output: cannot write x/",
        "--output pipe": "argument --output: cannot write pipe/metrics.csv: ",
        "--output taken": "argument --output: cannot write taken/checkpoint.npz: Is a directory",
        "--output /dev/null": "argument --output: cannot write /dev/null: File exists",
        "--output /dev/null/x": "argument --output: cannot write /dev/null/x: Not a directory",
        "--epoch 3": "unrecognized arguments: --epoch 3",
        "stray": "unrecognized arguments: stray",
    },
    train_mnist: {
        "": "the following arguments are required: --data",
        "--data . --model rnn": "argument --model: invalid choice: 'rnn' (choose from",
        "--data . --dropout 1.5": "argument --dropout: expected a number from 0 to 1, got '1.5'",
        "--data . --dropout nan": "argument --dropout: expected a number from 0 to 1, got 'nan'",
        "--data . --batch-size 0": "argument --batch-size: expected an integer from 1",
        "--data=": "argument --data: expected the name of a folder, got ''",
        "--data . --output /dev/null": "argument --output: cannot write /dev/null",
    },
    train_text: {
        "--data": "argument --data: expected at least one argument",
        "--model rnn": "argument --model: invalid choice: 'rnn' (choose from",
        "--dim 100 --heads 3": "argument --heads: expected heads that divide the features, got 100",
        "--context 0": "argument --context: expected an integer from 1 to 65536, got '0'",
        "--steps 10000000": "argument --steps: expected at most 10^8 windows an epoch, got 32",
        "--temperature -1": "argument --temperature: expected a number from 0 to 3e38, got '-1'",
        "--top-k 0": "argument --top-k: expected an integer from 1",
        "--sample 100": "arguments --sample and --from: expected both or none",
        "--from params.npz": "arguments --sample and --from: expected both or none",
        "--output /dev/null": "argument --output: cannot write /dev/null",
    },
    grid_search: {
        "--rates": "argument --rates: expected at least one argument",
        "--rates 0.1 fast": "argument --rates: expected a number from 0 to 3e38, got 'fast'",
        "--rates 0.1 0.1": "argument --rates: expected different rates",
        "--seeds 0": "argument --seeds: expected an integer from 1",
        "--validation-size 1000": "argument --validation-size: expected at most 999",
        "--batch-size 900 --validation-size 200": (
            "argument --validation-size: expected at most 100"
        ),
        "--encoding binary": "argument --encoding: invalid choice: 'binary'",
        "--output /dev/null": "argument --output: cannot write /dev/null",
    },
    compare_pytorch: {
        "--batch-size 1001": "argument --batch-size: expected at most the 1000 training points",
        "--rates 0.1 0.1": "argument --rates: expected rates that print differently",
        "--dtype float16": "argument --dtype: invalid choice: 'float16'",
        "--torch-rate -1": "argument --torch-rate: expected a number from 0 to 3e38, got '-1'",
        "": "PyTorch is not installed; 'pip install torch' installs it",
    },
    compare_gpt: {
        "--dim 100 --heads 3": "argument --heads: expected heads that divide the features, got 100",
        "--steps 10000000": "argument --steps: expected at most 10^8 windows, got 160000000",
        "--dtype float16": "argument --dtype: invalid choice: 'float16'",
        "--eps -1": "argument --eps: expected a number from 0 to 3e38, got '-1'",
        "": "PyTorch is not installed; 'pip install torch' installs it",
    },
    record_gpt2: {"values.json": "PyTorch is not installed; 'pip install torch' installs it"},
    record_pytorch: {
        "": "the following arguments are required: file",
        "values.json stray": "unrecognized arguments: stray",
        "values.json": "PyTorch is not installed; 'pip install torch' installs it",
    },
    record_torchvision: {
        "values.json": "torchvision is not installed; 'pip install torchvision' installs it",
    },
    benchmark: {
        "--groups fast": "argument --groups: invalid choice: 'fast'",
        "--rounds 0": "argument --rounds: expected an integer from 1",
        "--json /dev/null": "argument --json: cannot write /dev/null: not a regular file",
        "--json /dev/null/x": "argument --json: cannot write /dev/null",
    },
}


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        pytest.param(script, arguments, message, id=f"{script.__name__} {arguments[:50]}")
        for script, table in BAD.items()
        for arguments, message in table.items()
    ],
)
def test_bad_arguments_end_in_one_line_and_status_2(
    script, arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken" / "checkpoint.npz").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "metrics.csv")
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(SystemExit) as exit_info:
        script.main(arguments.split())
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_result_that_cannot_be_written_is_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "result.csv"
    files.write_rows(path, [["a", 1]])

    def full(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "beside", None, str(path))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        OSError, match=re.escape(f"[Errno 28] No space left on device: '{path}'") + "$"
    ):
        files.write_rows(path, [["b", 2]])
    assert path.read_bytes() == b"a,1\r\n"
    assert [*tmp_path.iterdir()] == [path]


def test_a_link_to_a_result_leads_to_the_new_one(tmp_path):
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "metrics.csv", tmp_path / "folder" / "metrics.csv"
    target.write_text("old")
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_only_what_a_killed_run_was_writing_is_removed(tmp_path):
    debris = [f"{name}.0123abcd.unfinished" for name in ("params.npz", "curves.svg")]
    kept = ["thesis.unfinished", "notes.unfinished/x", "a.0123abcd.unfinished/x", ".lock"]
    for name in (*debris, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert command_line.run(lambda options: 0, None, tmp_path) == 0
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {
        *map(tmp_path.joinpath, kept)
    }


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_lock_is_told(make, tmp_path, capsys):
    make(tmp_path / ".lock")
    assert command_line.run(lambda options: 0, None, tmp_path) == 1
    message = f"not a regular file: '{tmp_path / '.lock'}'\n"
    assert capsys.readouterr().err.endswith(message)


def test_the_comparison_starts_where_pytorch_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(pytorch, "import_torch", lambda: None)
    monkeypatch.setattr(compare_pytorch, "compare", lambda options: 0)
    assert compare_pytorch.main(["--output", str(tmp_path)]) == 0


def run(work, *, before="", **options):
    """The exit status and the errors of a script that does `work`, a statement."""
    program = (
        f"{before}import sys\nfrom shared import command_line\n"
        f"def work(options):\n    {work}\n    return 0\n"
        "sys.argv[0] = 'script.py'\n"
        "sys.exit(command_line.run(work, None))"
    )
    return run_program("-c", program, **options)


def run_program(*arguments, **options):
    process = processes.start(arguments, **{"PYTHONPATH": str(SCRIPTS), **options})
    return process.wait(), process.errors()


@pytest.mark.parametrize(
    ("platform", "arguments", "message"),
    [
        ("nonsense", [], "Unable to initialize backend 'nonsense'"),
        ("nonsense", ["--data-parallel"], "Unable to initialize backend 'nonsense'"),
        ("fpga", [], "Unable to initialize backend 'fpga'"),
        ("cuda", [], ""),  # a version of JAX may have it, and no device is visible
    ],
)
def test_a_backend_that_is_not_there_is_told_in_one_line(platform, arguments, message, tmp_path):
    script = SCRIPTS / "train_disk.py"
    given = [*arguments, "--output", str(tmp_path)]
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    status, errors = run_program(script, *given, JAX_PLATFORMS=platform, **hidden)
    assert status == 2
    assert errors.startswith(f"train_disk.py: error: {message}")
    assert errors.count("\n") == 1


def test_a_closed_pipe_ends_the_work_without_a_word():
    close = """
import os, sys
reader, writer = os.pipe()
os.close(reader)
sys.stdout = open(writer, "w")
os.dup2(writer, 1)
"""
    for work in ("print('x' * 100_000)", "print('x')"):
        assert run(work, before=close) == (141, "")


def test_output_that_cannot_be_written_is_told_in_one_line():
    for work in ("print('x' * 100_000)", "print('x')"):
        message = "script.py: error: [Errno 28] No space left on device\n"
        assert run(work, out="/dev/full") == (1, message)


def test_a_script_says_that_memory_is_not_enough():
    message = "script.py: error: there is not enough memory\n"
    assert run("raise MemoryError") == (1, message)


def test_letters_that_a_terminal_has_not_are_written_as_numbers(tmp_path):
    work = "print('84 \\xb1 1', '\\udce9')"
    assert run(work, out=tmp_path / "out", PYTHONIOENCODING="ascii") == (0, "")
    assert (tmp_path / "out").read_text() == "84 \\xb1 1 \\udce9\n"


def test_messages_are_one_line_without_control_characters(capsys):
    command_line.tell("a\nb\x1b[2J\u00e9")
    assert capsys.readouterr().err.endswith(": a\\nb\\x1b[2J\u00e9\n")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_script_finds_its_modules_where_python_does_not_look(name):
    paths = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(SCRIPTS.parent)}
    command = [sys.executable, SCRIPTS / name, "--help"]
    process = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith(f"usage: {name}")


@pytest.mark.parametrize(
    "script", [compare_gpt, compare_pytorch, grid_search, train_mnist, train_text]
)
def test_help_ends_with_commands_that_the_script_takes(script, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(pytorch, "import_torch", lambda: None)
    with pytest.raises(SystemExit):
        script.parse_options(["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    name = f"{script.__name__}.py"
    commands = re.findall(rf"^  ({name}.*)$", text.replace("\\\n", ""), re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        script.parse_options(shlex.split(command)[1:])


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("is_ignored", [False, True])
def test_an_interrupt_while_a_script_starts_ends_it_plainly(name, is_ignored, tmp_path):
    program = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
raise SystemExit("it goes on")
"""
    (tmp_path / "jax.py").write_text(program)  # in the place of JAX
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        process = subprocess.run(
            [sys.executable, SCRIPTS / name],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    expected = (1, "it goes on\n") if is_ignored else (-signal.SIGINT, "")
    assert (process.returncode, process.stderr) == expected


def test_an_interrupt_is_handled_as_pythons_while_a_script_works():
    work = "import signal; signal.raise_signal(signal.SIGINT)"
    assert run(work) == (130, "script.py: error: interrupted\n")
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    assert run(work, before=program) == (130, "script.py: error: interrupted\n")
