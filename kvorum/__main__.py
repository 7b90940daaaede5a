"""The command `kvorum`: `kvorum gateway …`, `kvorum grpc-proxy …`, or a member with the flags given.

Each is imported only when it is asked for: they share little, and a start should load what it needs.
"""

import importlib
import sys
from typing import Final, NoReturn

COMMANDS: Final = {
    "gateway": "gateway.command",
    "grpc-proxy": "proxy.command",
}
"""The first argument that chooses a command, and the module whose `main` takes the arguments after it."""


def main() -> NoReturn:
    """Run what the process's arguments ask for, and end as it ends."""
    module = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if module is not None:
        importlib.import_module(module).main(sys.argv[2:])
    else:
        importlib.import_module("node.__main__").main()
    raise AssertionError("a command ends the process")


if __name__ == "__main__":
    main()
