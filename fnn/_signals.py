"""Signals that end a run: the epoch that is running is finished and stored first."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interruptions(
    heard: Callable[[int], None] = lambda number: None,
) -> Iterator[Callable[[], int | None]]:
    """Give a function that returns the number of the first SIGINT or SIGTERM so far, or None.

    Neither interrupts the main thread, so that an epoch can be finished and stored. But a SIGINT
    after the first signal ends the process at once. Signals that were ignored stay ignored. The
    handlers from before are set again at the end.

    Args:
        heard: another thread calls it with the number of the first signal, at once.

    Raises:
        ValueError: the block is not in the main thread, the only one where Python sets handlers.
    """
    first = []
    numbers = {signal.SIGINT, signal.SIGTERM}
    numbers = {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}

    def listen():  # in a thread, because the main one hears nothing while it waits for XLA
        while received := listener.recv(1):  # nothing when the other end is closed
            number = received[0]
            if first and number == signal.SIGINT:
                os._exit(128 + number)
            if not first and number in numbers:
                first.append(number)
                heard(number)

    listener, waker = socket.socketpair()
    thread = threading.Thread(target=listen, daemon=True)
    with listener, waker:
        waker.setblocking(False)
        previous_waker = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        thread.start()
        previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        try:
            yield lambda: first[0] if first else None
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_waker)
            waker.close()
            thread.join()
