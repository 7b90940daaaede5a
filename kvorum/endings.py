"""How a command that a signal has stopped ends its process."""

import os
import signal
import sys


def die_by(number: int) -> None:
    """End this process by that signal, as whoever sent it expects. Returns as pid 1, which no signal ends (S49)."""
    if os.getpid() != 1:
        sys.stderr.flush()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
