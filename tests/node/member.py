"""Starts a member whose processes are `tests.node.children`, as the command does."""

import os
import sys

from node.__main__ import end, run
from node.child import Role

if __name__ == "__main__":
    silence_limit_s = float(sys.argv.pop(1))
    children = dict.fromkeys((Role.APPLY, Role.RAFT, Role.WATCH, Role.FRONT), "tests.node.children:main")
    end(run(sys.argv, os.environ, children, silence_limit_s))
