"""train_disk.py that reports its saves, and that one of them disturbs.

disturbed_train_disk.py FOLDER HOLD HOW [ARGUMENT OF train_disk.py ...]

Each save writes "(" to the named pipe FOLDER.events as it begins, and ")" as it ends. The one with
the number HOLD first waits until FOLDER.go is there; or, as HOW has it, sets a limit for the size
of files ("full"), gives up the right to write in FOLDER ("read-only"), or begins a computation of
minutes that nothing interrupts ("deaf"). If HOW is "slow", so is the disk.
"""

import hashlib
import os
import pathlib
import resource
import sys
import time

import train_disk

import fnn.loop

folder, hold, how, *arguments = sys.argv[1:]
events = os.open(folder + ".events", os.O_RDWR)
save, fsync, count = fnn.save, os.fsync, 0


def reporting_save(*arguments, **options):
    global count
    count += 1
    os.write(events, b"(")
    if count == int(hold) and how == "wait":
        deadline = time.monotonic() + 60
        while not pathlib.Path(folder + ".go").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
    elif count == int(hold) and how == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    elif count == int(hold) and how == "read-only":
        os.chmod(folder, 0o500)
        if os.geteuid() == 0:
            os.seteuid(65534)  # the superuser may write everywhere
    elif count == int(hold) and how == "deaf":
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
status = train_disk.main(sys.argv[1:])
sys.stdout.flush()
os._exit(status)  # at once, as train_disk.py ends after a signal
