"""What Ctrl-C does while a script starts. It has its own file, to be imported before JAX."""

import signal


def die_of_interrupts() -> None:
    """Let SIGINT end the process at once from now on, unless it is ignored.

    Python's KeyboardInterrupt prints a traceback, and can get lost while modules are imported.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
