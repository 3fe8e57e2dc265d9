"""Several processes over loopback: the numbers of one, and an end for all when one is missing."""

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import time

import chex
import jax
import jax.numpy as jnp
import processes
import pytest
import test_train_mnist
import train_disk
import train_mnist
from processes import SCRIPTS
from shared import distributed

import fnn

SCRIPT = SCRIPTS / "train_disk.py"
LIMIT = 120  # seconds that a test waits for a process, many times what it takes
SMALL = (
    *("--train-size", "64", "--test-size", "64", "--batch-size", "16", "--hidden", "8"),
    *("--epochs", "12", "--checkpoint-every", "3", "--quiet"),
)


def start(arguments, **environment):
    settings = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(SCRIPTS)}
    return processes.start(arguments, **settings | environment)


def finish(*started):
    """The exit status, the output and the errors of each."""
    return [process.result() for process in started]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# train_disk.py that waits for no other process before it ends.
HASTY = """
import sys
import train_disk
from shared import distributed
distributed.SECONDS_TO_LEAVE = 0.3
sys.argv[0] = "train_disk.py"
sys.exit(train_disk.main())
"""

# train_disk.py, killed in its seventh epoch or later.
VICTIM = """
import os, signal, sys
import train_disk
from shared import distributed
largest, calls = distributed.largest, []
def largest_or_end(*arguments):
    calls.append(arguments)
    if len(calls) > 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return largest(*arguments)
distributed.largest = largest_or_end
sys.exit(train_disk.main())
"""


def start_two(output, *arguments, programs=((SCRIPT,), (SCRIPT,)), of_second=(), **second):
    """train_disk.py in two processes; the second one's --output is not to be written."""
    options = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2)
    folders, more = (output, output.parent / "unused"), ((), of_second)
    return [
        start(
            [
                *(*programs[number], *SMALL, *options, "--process-id", number),
                *("--output", folders[number], *arguments, *more[number]),
            ],
            **(second if number else {}),
        )
        for number in (0, 1)
    ]


def params_of(folder):
    like = train_disk.disk.make_network([8], "leaky_relu").init(jax.random.key(0))
    return fnn.load(folder / "params.npz", like)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The output of two processes that nothing happened to, and what they said."""
    output = tmp_path_factory.mktemp("undisturbed") / "first"
    return output, finish(*start_two(output))


STEPS = """
import sys
import jax
import jax.numpy as jnp
import fnn

address, number = sys.argv[1], int(sys.argv[2])
if number >= 0:
    jax.distributed.initialize(address, 2, number, initialization_timeout=60)
jax.config.update("jax_enable_x64", True)
mesh = fnn.data_parallel_mesh()
for dtype in (jnp.float32, jnp.float64):
    model = fnn.Sequential(fnn.Linear(3, 8, dtype=dtype), fnn.Tanh(), fnn.Linear(8, 2, dtype=dtype))
    optimizer = fnn.sgd(0.1, momentum=0.5)
    step = fnn.make_train_step(model, fnn.MSELoss(), optimizer)
    state = fnn.init_train_state(model, optimizer, jax.random.key(0))
    x, target = (1 + jnp.sin(jnp.arange(40.0 * n, dtype=dtype)).reshape(40, n) for n in (3, 2))
    if number >= 0:
        own = slice(20 * number, 20 * number + 20)
        state = fnn.replicate(mesh, state)
        x, target = fnn.shard_batch(mesh, (x[own], target[own]))
    for _ in range(100):
        state, _ = jax.block_until_ready(step(state, x, target))
    for leaf in jax.tree.leaves(state.params):
        print([value.hex() for value in jax.device_get(leaf).ravel().tolist()])
"""


def test_a_hundred_steps_of_two_processes_end_where_one_ends():
    address = f"127.0.0.1:{free_port()}"
    results = finish(*[start(["-c", STEPS, address, number]) for number in (0, 1, -1)])
    assert [status for status, _, _ in results] == [0, 0, 0], results
    first, second, expected = (
        [
            [float.fromhex(word.strip("'[], ")) for word in line.split()]
            for line in output.splitlines()
            if line.startswith("[") and "Gloo" not in line
        ]
        for _, output, _ in results
    )
    assert first == second
    assert len(expected) == 8
    with jax.enable_x64(True):
        for index, (a, b) in enumerate(zip(first, expected, strict=True)):
            a, b = jnp.array(a), jnp.array(b)
            rtol = 1e-6 if index < 4 else 1e-13
            chex.assert_trees_all_close(a, b, rtol=0, atol=rtol * float(jnp.max(jnp.abs(b))))


def test_the_first_of_two_processes_prints_and_writes(undisturbed):
    output, ((status, text, errors), other) = undisturbed
    assert (status, errors) == (0, "")
    assert text.startswith("test accuracy")
    assert len(text.splitlines()) == 1
    assert other == (0, "", "")
    assert not (output.parent / "unused").exists()
    assert len((output / "metrics.csv").read_text().splitlines()) == 13


def test_a_killed_process_ends_the_other_and_costs_nothing(undisturbed, tmp_path):
    output = tmp_path / "first"
    programs = ("-c", HASTY), ("-c", VICTIM)
    (status, _, errors), (killed, _, _) = finish(*start_two(output, programs=programs))
    assert (status, killed) == (1, -signal.SIGKILL)
    assert errors.splitlines()[-1].startswith("train_disk.py: error: another process may be gone: ")
    shutil.copytree(output, tmp_path / "alone")

    assert [result[0] for result in finish(*start_two(output, "--resume"))] == [0, 0]
    chex.assert_trees_all_equal(params_of(output), params_of(undisturbed[0]))

    alone = [SCRIPT, *SMALL, "--data-parallel", "--resume", "--output", tmp_path / "alone"]
    ((status, _, errors),) = finish(start(alone, JAX_NUM_CPU_DEVICES="4"))
    assert (status, errors) == (0, "")


def test_without_the_first_process_the_other_ends_too(tmp_path):
    """By its own error, or aborted by JAX, which misses the coordinator."""
    programs = ("-c", VICTIM), (SCRIPT,)
    (killed, _, _), (status, _, errors) = finish(*start_two(tmp_path / "x", programs=programs))
    assert killed == -signal.SIGKILL
    assert status in (1, -signal.SIGABRT)
    assert "died" in errors or "another process may be gone" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("different", [("--seed", 1), ("--num-processes", 3)], ids=str)
def test_processes_with_different_options_end_before_they_train(different, tmp_path):
    output = tmp_path / "first"
    for status, _, errors in finish(*start_two(output, of_second=different)):
        assert (status, errors) == (
            2,
            "train_disk.py: error: the processes have different options\n",
        )


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
        {"JAX_DISABLE_JIT": "1"},
        {"JAX_ENABLE_X64": "1", "JAX_THREEFRY_PARTITIONABLE": "0"},
    ],
    ids=["rbg", "no jit", "x64"],
)
def test_processes_with_other_settings_of_jax_do_not_train(environment, tmp_path):
    for status, _, errors in finish(*start_two(tmp_path / "first", **environment)):
        message = "train_disk.py: error: the processes have different settings of JAX\n"
        assert (status, errors) == (2, message)


# train_disk.py with another library, or with other points.
CHANGED = """
import sys
import jax, fnn, train_disk
{change}
sys.argv[0] = "train_disk.py"
sys.exit(train_disk.main())
"""


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("jax.__version__ = '0.0'", "versions of JAX"),
        ("fnn.__file__ = train_disk.__file__", "versions of fnn"),
        (
            "sample = fnn.sample_disk\n"
            "fnn.sample_disk = lambda key, *size, **kind: "
            "sample(jax.random.fold_in(key, 1), *size, **kind)",
            "data",
        ),
    ],
    ids=["JAX", "fnn", "data"],
)
def test_processes_with_other_versions_or_data_do_not_train(change, what, tmp_path):
    programs = (SCRIPT,), ("-c", CHANGED.format(change=change))
    for status, _, errors in finish(*start_two(tmp_path / "first", programs=programs)):
        assert (status, errors) == (
            2,
            f"train_disk.py: error: the processes have different {what}\n",
        )


@pytest.mark.parametrize("missing", [(0,), (1,), (0, 1)], ids=str)
def test_a_missing_backend_ends_all_processes_and_each_tells(missing, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    options = ["-c", HASTY, *SMALL, "--coordinator", address, "--num-processes", 2]
    started = time.monotonic()
    both = [
        start(
            [*options, "--process-id", number, "--output", tmp_path],
            **({"JAX_PLATFORMS": "nonsense"} if number in missing else {}),
        )
        for number in (0, 1)
    ]
    for status, text, errors in finish(*both):
        assert (status, text) == (1, "")
        assert errors.startswith("train_disk.py: error: ")
        assert "Unable to initialize backend 'nonsense'" in errors
        assert errors.count("\n") == 1
    assert time.monotonic() - started < 30  # --start-timeout is twice as long


def test_processes_with_other_numbers_of_devices_do_not_train(tmp_path):
    programs = (("-c", HASTY),) * 2
    both = start_two(tmp_path / "x", programs=programs, JAX_NUM_CPU_DEVICES="2")
    for status, _, errors in finish(*both):
        assert status == 1
        assert "expected equally many devices in every process, got [1, 2]\n" in errors


def test_a_signal_to_one_process_ends_both_and_each_tells(tmp_path):
    output = tmp_path / "first"
    both = start_two(output, "--epochs", 10**6)
    deadline = time.monotonic() + LIMIT
    while not (output / "checkpoint.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)
    for status, _, errors in finish(*both):
        assert status == 128 + signal.SIGTERM
        assert "the same command with --resume goes on" in errors
    assert len(fnn.read_note(output / "checkpoint.npz")["table"]) >= 3


def test_nonfinite_numbers_end_both_processes_and_each_tells(tmp_path):
    programs = (("-c", HASTY),) * 2
    both = start_two(tmp_path / "x", "--learning-rate", 1e38, programs=programs)
    for status, _, errors in finish(*both):
        assert status == 1
        assert re.search(r": the \w+ (is|are) not finite in epoch 1: lower --learning", errors)


@pytest.mark.parametrize("is_locked", [False, True])
def test_what_one_process_refuses_the_other_tells_too(is_locked, undisturbed, tmp_path):
    output, message = tmp_path / "first", "is from a run with momentum 0.0, not 0.5"
    shutil.copytree(undisturbed[0], output)
    with contextlib.ExitStack() as held:
        if is_locked:
            held.enter_context(fnn.files.sole_use(output))
            message = f"another run is writing to {output}"
        first, second = finish(*start_two(output, "--resume", "--momentum", 0.5))
    assert (first[0], second[0]) == (2, 2)
    assert message in first[2]
    expected = "train_disk.py: error: another process has found an error, and tells it\n"
    assert second[2] == expected


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            (),
            {"SLURM_PROCID": "2", "SLURM_NTASKS": "2"},
            "cannot join the run at the coordinator: ",
        ),
        (
            ("--num-processes", 2, "--process-id", 0),
            {"JAX_COORDINATOR_ADDRESS": "here"},
            "argument --coordinator: expected HOST:PORT, got 'here'",
        ),
    ],
)
def test_an_environment_of_no_run_is_refused(arguments, environment, message, tmp_path):
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": "0"}
    environment = {**(slurm if "SLURM_PROCID" in environment else {}), **environment}
    command = [SCRIPT, *SMALL, "--data-parallel", *arguments, "--output", tmp_path]
    ((status, text, errors),) = finish(start(command, **environment))
    assert status in (1, 2)
    assert text == ""
    assert message in errors
    assert "Traceback" not in errors


def test_a_stdout_that_is_closed_needs_no_silence(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    before = os.fstat(1)
    with distributed._silence():
        assert os.fstat(1) == before


def test_who_waits_for_others_can_be_interrupted(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    options = ["--coordinator", address, "--num-processes", 2, "--process-id", 0]
    process = start([SCRIPT, *SMALL, *options, "--output", tmp_path])
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:  # until the coordinator listens
        with contextlib.suppress(OSError), socket.create_connection(address.split(":")):
            break
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    ((status, _, errors),) = finish(process)
    assert status == -signal.SIGINT
    assert time.monotonic() - started < 30  # --start-timeout is twice as long
    assert errors == ""


# train_mnist.py, which tells the numbers of the training images that it reads.
READER = """
import sys
import fnn, train_mnist
load_idx = fnn.load_idx
def load_and_tell(path, **options):
    if path.name.startswith("train-images"):
        print(*options["examples"], file=sys.stderr)
    return load_idx(path, **options)
fnn.load_idx = load_and_tell
sys.exit(train_mnist.main())
"""


def test_each_process_reads_its_half_of_the_images(tmp_path):
    images = test_train_mnist.draw_set(0, 120), test_train_mnist.draw_set(1, 10)
    data = test_train_mnist.write(tmp_path, *images[0], *images[1])
    options = ["--data", str(data), "--epochs", "1", "--batch-size", "110", "--quiet"]
    address = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2]
    output = tmp_path / "first"
    both = [
        start(
            ["-c", READER, *options, *address, "--process-id", number, "--output", folder],
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # as conftest.py does here
        )
        for number, folder in enumerate([output, tmp_path / "unused"])
    ]
    results = finish(*both)
    assert [status for status, _, _ in results] == [0, 0], results
    read = [[[*map(int, line.split())] for line in errors.splitlines()] for *_, errors in results]
    assert [[len(numbers) for numbers in sets] for sets in read] == [[55, 5], [55, 5]]
    assert sorted(number for sets in read for numbers in sets for number in numbers) == [
        *range(120)
    ]
    params = (output / "params.npz").read_bytes()
    assert train_mnist.main([*options, "--output", str(output), "--resume"]) == 0
    assert (output / "params.npz").read_bytes() == params


def test_processes_with_other_images_end_before_they_train(tmp_path):
    sets = [*test_train_mnist.draw_set(0, 120), *test_train_mnist.draw_set(1, 10)]
    other = [test_train_mnist.draw_set(2, 120)[0], *sets[1:]]
    address = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2]
    both = []
    for number, contents in enumerate((sets, other)):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = ["--data", test_train_mnist.write(folder, *contents), "--process-id", number]
        program = SCRIPTS / "train_mnist.py"
        both.append(start([program, *options, *address, "--output", tmp_path / "output"]))
    for status, _, errors in finish(*both):
        message = "train_mnist.py: error: the processes have different data\n"
        assert (status, errors) == (2, message)


def test_a_batch_that_devices_do_not_divide_ends_every_process(tmp_path):
    for status, _, errors in finish(*start_two(tmp_path / "first", "--batch-size", 15)):
        assert status == 2
        assert "argument --batch-size: expected a multiple of the 2 devices, got 15" in errors


def test_the_wait_for_a_missing_coordinator_has_a_limit(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    options = ("--num-processes", 2, "--process-id", 1, "--start-timeout", 1)
    environment = {"JAX_COORDINATOR_ADDRESS": address}
    ((status, text, errors),) = finish(
        start([SCRIPT, *options, "--data-parallel", "--output", tmp_path / "x"], **environment)
    )
    assert (status, text) == (1, "")
    assert errors.splitlines()[-1] == (
        f"train_disk.py: error: the processes did not all come to {address} within 1 seconds"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--coordinator here --num-processes 2 --process-id 0", "expected HOST:PORT, got 'here'"),
        ("--coordinator a:1 --num-processes 2 --process-id 2", "an integer from 0 to 1, got 2"),
        ("--coordinator a:1 --num-processes 2 --process-id -1", "an integer from 0 to 1, got -1"),
        ("--coordinator a:1 --num-processes 2", "expected both or none"),
        ("--num-processes 2 --process-id 1", "expected HOST:PORT with --num-processes, got none"),
    ],
)
def test_a_command_line_of_no_run_is_refused(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as exit:
        train_disk.parse_options(arguments.split())
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
