"""A command that a signal has stopped ends by that signal."""

import os
import signal
import subprocess
import sys

import pytest

from kvorum.endings import die_by


def test_the_status_is_death_by_the_signal() -> None:
    program = "import signal; from kvorum.endings import die_by; signal.signal(15, print); die_by(15)"
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == -signal.SIGTERM


def test_S49_as_pid_1_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    die_by(signal.SIGTERM)
