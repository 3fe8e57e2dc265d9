"""Runs of train_disk.py in processes of their own, without the second that it takes to import JAX.

This program imports it, and forks. Each line on its standard input is JSON: a run to start, that
is the arguments of `run` below, answered by the process id, or the id of a process to wait for,
answered by its exit status.
"""

import hashlib
import json
import os
import pathlib
import resource
import sys
import time
import warnings

import train_disk

import fnn.loop


def run(folder, arguments, hold=0, how="wait"):
    """The status of train_disk.py. What it prints is in `folder`.out and .err.

    Each save writes "(" to the named pipe `folder`.events as it begins, and ")" as it ends. The
    one with the number `hold` first waits until `folder`.go is there; or, as `how` has it, sets a
    limit for the size of files, gives up the right to write in `folder`, or begins a computation
    of minutes that nothing interrupts. If `how` is "slow", so is the disk.
    """
    for stream, suffix in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        os.dup2(os.open(folder + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    events = os.open(folder + ".events", os.O_RDWR)
    save, fsync, count = fnn.save, os.fsync, 0

    def reporting_save(*arguments, **options):
        nonlocal count
        count += 1
        os.write(events, b"(")
        if count == hold and how == "wait":
            deadline = time.monotonic() + 60
            while not pathlib.Path(folder + ".go").exists() and time.monotonic() < deadline:
                time.sleep(0.001)
        elif count == hold and how == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        elif count == hold and how == "read-only":
            os.chmod(folder, 0o500)
            if os.geteuid() == 0:
                os.seteuid(65534)  # the superuser may write everywhere
        elif count == hold and how == "deaf":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
        save(*arguments, **options)
        os.write(events, b")")

    def slow_fsync(file):
        time.sleep(0.004)
        fsync(file)

    fnn.save = fnn.loop.save = reporting_save
    if how == "slow":
        os.fsync = slow_fsync
    sys.argv = ["train_disk.py", *arguments, "--output", folder]
    return train_disk.main(sys.argv[1:])


def main():
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called")  # no thread has started yet
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                status = 1
                try:
                    status = run(**request)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
