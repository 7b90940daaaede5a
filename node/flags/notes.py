"""What start-up has to say in the log before there is one."""

from collections.abc import Mapping
from typing import NamedTuple

from kvorum.log import Level


class Note(NamedTuple):
    """One line for the log; `fields` has Python names for keys, as `Logger` takes them."""

    level: Level
    msg: str
    fields: Mapping[str, object]
