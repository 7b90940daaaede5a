"""What all parts of kvorum share, and what users import."""

from typing import Final

__version__: Final = "0.1.0"

API_VERSION: Final = "3.7.0"
"""The level of the v3 API that kvorum speaks, as `/version`, `Status` and `--version` report it."""
