"""A member as the command starts it, whose processes are `tests.node.children`; its limits come first, in seconds."""

import os
import sys
from functools import partial

from node.__main__ import end, run
from node.child import Role
from node.supervisor import Supervisor

if __name__ == "__main__":
    silence_limit_s, stop_limit_s = float(sys.argv.pop(1)), float(sys.argv.pop(1))
    entries = dict.fromkeys((Role.APPLY, Role.RAFT, Role.WATCH, Role.FRONT), "tests.node.children:main")
    supervisor = partial(Supervisor, entries=entries, silence_limit_s=silence_limit_s, stop_limit_s=stop_limit_s)
    end(run(sys.argv, os.environ, supervisor))
