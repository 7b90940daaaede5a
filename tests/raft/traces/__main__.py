"""`python -m tests.raft.traces DIR`: a line per trace file; exit code 1 when one differs, 2 when there is none."""

import sys
from pathlib import Path

from tests.raft.traces.format import BadTrace
from tests.raft.traces.runner import Difference, first_difference, trace_files


def main(arguments: list[str]) -> int:
    """Run every trace file of the folders given."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    failed = total = 0
    for argument in arguments:
        folder = Path(argument)
        for path in trace_files(folder):
            total += 1
            difference: Difference | BadTrace | None
            try:
                difference = first_difference(path)
            except BadTrace as error:
                difference = error
            name = path.relative_to(folder)
            if difference is None:
                print(f"{name}: passed")
            else:
                failed += 1
                print(f"{name}: {difference}")
    print(f"{total - failed} of {total} passed")
    if not total:
        print("no trace files there", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
