"""`python -m gateway start …`, the same as `kvorum gateway start …`."""

import sys

from gateway.command import run

sys.exit(run(sys.argv[1:], "python -m gateway"))
