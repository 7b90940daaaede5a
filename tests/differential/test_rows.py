"""Every observable row of the contract has a test of its name, or stands here with the reason why it has none."""

import re
from pathlib import Path

from tests.differential.behind_proxy import NEED_THE_STORE_ALONE

ROWS = {
    "P": 20,
    "V": 12,
    "R": 20,
    "RS": 14,
    "PU": 9,
    "D": 7,
    "T": 36,
    "C": 15,
    "H": 13,
    "W": 27,
    "WE": 20,
    "WP": 18,
    "L": 33,
    "M": 30,
    "MA": 34,
    "J": 30,
    "HT": 27,
    "G": 19,
}
MEMBERS = "needs more than one member"
AUTH = "needs auth"
INSIDE = "not observable from outside"
TIMING = "a matter of pace, not of answers"
CLIENT = "what clients do, not the server"
LONG = "takes minutes or hours"
OLD = "what 3.5.1 does, and 3.7 does not or leaves open"
ELSEWHERE = "tested where its client is: tests/clients"
RACE = "a race that cannot be forced from outside"

UNTESTED = {
    MEMBERS: "P10 P11 P12 P13 P14 RS14 C12 H10 H13 WE18 WE19 WE20 WP10 WP11 WP12 L12 L13 L17 L23 L25 L33 MA6 MA12 MA34",
    AUTH: "M5 M10 RS13 T36 C11 W24 W25 W26 W27 MA33 J21",
    INSIDE: "P19 P20 RS12 T35 C15 H9 H11 W16 W21 L32 G13",
    TIMING: "WE4 L24 L31 WE6 WP3 MA19",
    CLIENT: "WP15 WP16 WP17 WP18 G3 G17 G18 G19",
    LONG: "C13 C14 L27",
    OLD: "HT14 J10",
    ELSEWHERE: "MA22",
    RACE: "M30 P5 P16 P17 WE17 WP9 L9",
}


def rows_of(texts: str) -> set[str]:
    """The row ids in the names of tests and in the ids of their parameters."""
    found: set[str] = set()
    for name in re.findall(r"def test_((?:[A-Z]+\d+_)+)", texts):
        found |= set(name.strip("_").split("_"))
    for name in re.findall(r'id="((?:[A-Z]+\d+[-"])+)', texts):
        found |= set(re.split(r'[-"]', name)) - {""}
    return found


def test_every_row_is_tested_or_excused() -> None:
    folder = Path(__file__).parent
    tested = rows_of("\n".join(path.read_text() for path in folder.glob("test_*.py")))
    excused = {row for rows in UNTESTED.values() for row in rows.split()}
    every = {f"{prefix}{number}" for prefix, count in ROWS.items() for number in range(1, count + 1)}
    assert sorted(every - tested - excused) == []
    assert sorted(excused & tested) == []
    assert sorted((tested | excused) - every) == []


def test_the_rows_that_need_the_store_alone_exist() -> None:
    folder = Path(__file__).parent
    texts = "".join((folder / f"test_{name}.py").read_text() for name in ("lease", "compact_hash"))
    assert set(re.findall(r"def (test_\w+)", texts)) >= set(NEED_THE_STORE_ALONE)
