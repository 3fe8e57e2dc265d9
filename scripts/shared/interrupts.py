"""What Ctrl-C does while a script starts: apart, because JAX is not imported yet."""

import signal


def die_of_interrupts() -> None:
    """From now on SIGINT ends the process without a word, unless it is ignored.

    Python would raise KeyboardInterrupt, which prints a traceback or is lost while modules are
    imported.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
