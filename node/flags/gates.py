"""The feature gates (`--feature-gates`, behaviour S28, S48): names, stages, and which of them kvorum can turn."""

from enum import Enum
from typing import Final, NamedTuple

from kvorum.urls import quote


class Stage(Enum):
    """An alpha gate is off unless asked for; a beta gate is on."""

    ALPHA = "AllAlpha"
    BETA = "AllBeta"


class Gate(NamedTuple):
    """`inherent`: kvorum works so either way; the gate turns an optimisation inside the reference server."""

    stage: Stage
    inherent: bool = False

    @property
    def default(self) -> bool:
        return self.stage is Stage.BETA


GATES: Final = {
    "StopGRPCServiceOnDefrag": Gate(Stage.ALPHA),
    "InitialCorruptCheck": Gate(Stage.ALPHA),
    "CompactHashCheck": Gate(Stage.ALPHA),
    "TxnModeWriteWithSharedBuffer": Gate(Stage.BETA, inherent=True),
    "LeaseCheckpoint": Gate(Stage.ALPHA),
    "LeaseCheckpointPersist": Gate(Stage.ALPHA),
    "SetMemberLocalAddr": Gate(Stage.ALPHA),
    "FastLeaseKeepAlive": Gate(Stage.BETA, inherent=True),
    "PriorityRequest": Gate(Stage.ALPHA),
}

_BOOLS: Final = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


def parse_gates(text: str) -> dict[str, bool]:
    """Read `Name=true,Other=false`; returns every gate's state, all defaults with an empty text.

    `AllAlpha` and `AllBeta` turn the gates of a stage that are not named themselves. Raises ValueError with the
    reason for a gate that does not exist or a value that is not a boolean.
    """
    named: dict[str, bool] = {}
    stages: dict[str, bool] = {}
    for part in text.split(","):
        part = part.strip()
        if not part:
            continue
        name, equals, value = part.partition("=")
        name, value = name.strip(), value.strip()
        if not equals:
            raise ValueError(f"missing bool value for {name}")
        if value not in _BOOLS:
            raise ValueError(
                f"invalid value of {name}={value}, err: strconv.ParseBool: parsing {quote(value)}: invalid syntax"
            )
        if name in ("AllAlpha", "AllBeta"):
            stages[name] = _BOOLS[value]
        elif name in GATES:
            named[name] = _BOOLS[value]
        else:
            raise ValueError(f"unrecognized feature gate: {name}")
    return {name: named.get(name, stages.get(gate.stage.value, gate.default)) for name, gate in GATES.items()}
