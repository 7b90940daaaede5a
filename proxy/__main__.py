"""`python -m proxy start …`: the proxy without the command `kvorum`."""

import sys

from proxy.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
