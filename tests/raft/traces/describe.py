"""Messages, entries and Readys as the traces write them."""

from collections.abc import Sequence

from node.raft.core import (
    APPEND_THREAD,
    APPLY_THREAD,
    NOBODY,
    ChangeType,
    ConfChange,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    Ready,
    Snapshot,
    decode_change,
)
from node.raft.core.messages import MESSAGE_NAMES, ROLE_NAMES

ENTRY_NAMES = ("EntryNormal", "EntryConfChange", "EntryConfChangeV2")
LETTERS = {
    "v": ChangeType.ADD_VOTER,
    "l": ChangeType.ADD_LEARNER,
    "r": ChangeType.REMOVE,
    "u": ChangeType.UPDATE,
}
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def parse_changes(text: str) -> tuple[tuple[ChangeType, int], ...]:
    """`v1 l2 r3 u4`: voter, learner, remove, update. ValueError when it is not of this form."""
    changes: list[tuple[ChangeType, int]] = []
    for token in text.split():
        if len(token) < 2:
            raise ValueError(f"unknown token {token}")
        if token[0] not in LETTERS:
            raise ValueError(f"unknown input: {token}")
        changes.append((LETTERS[token[0]], int(token[1:])))
    return tuple(changes)


def describe_changes(change: ConfChange) -> str:
    """The reverse of `parse_changes`."""
    letters = {type_: letter for letter, type_ in LETTERS.items()}
    return " ".join(f"{letters[type_]}{member}" for type_, member in change.changes)


def quoted(data: bytes) -> str:
    """The data in double quotes, with what is not printable escaped."""
    text = data.decode("utf-8", "surrogateescape")
    parts: list[str] = []
    for character in text:
        if character in _ESCAPES:
            parts.append(_ESCAPES[character])
        elif character.isprintable() and not 0xDC80 <= ord(character) <= 0xDCFF:
            parts.append(character)
        else:
            parts.append(f"\\x{ord(character) & 0xFF:02x}")
    return '"' + "".join(parts) + '"'


def describe_entry(entry: Entry) -> str:
    """Term, index, type and content of an entry."""
    term, index, type_, data = entry
    content = quoted(data) if type_ == EntryType.NORMAL else describe_changes(decode_change(data))
    return f"{term}/{index} {ENTRY_NAMES[type_]}" + (f" {content}" if content else "")


def describe_entries(entries: Sequence[Entry]) -> str:
    """One line each."""
    return "".join(f"{describe_entry(entry)}\n" for entry in entries)


def describe_hard_state(state: HardState) -> str:
    """The vote only when there is one."""
    vote = f" Vote:{state.vote}" if state.vote else ""
    return f"Term:{state.term}{vote} Commit:{state.commit}"


def _ids(members: Sequence[int]) -> str:
    return "[" + " ".join(map(str, members)) + "]"


def describe_conf_state(state: ConfState) -> str:
    """All its sets."""
    return (
        f"Voters:{_ids(state.voters)} VotersOutgoing:{_ids(state.voters_outgoing)} Learners:{_ids(state.learners)} "
        f"LearnersNext:{_ids(state.learners_next)} AutoLeave:{str(state.auto_leave).lower()}"
    )


def describe_snapshot(snapshot: Snapshot) -> str:
    """Everything but its data."""
    return f"Index:{snapshot.index} Term:{snapshot.term} ConfState:{describe_conf_state(snapshot.conf_state)}"


def _target(member: int) -> str:
    return {NOBODY: "None", APPEND_THREAD: "AppendThread", APPLY_THREAD: "ApplyThread"}.get(member, f"{member:x}")


def describe_message(message: Message, indent: str = "", *, responses: bool = True) -> str:
    """A line, or more when it carries several entries, a snapshot or responses."""
    text = (
        f"{indent}{_target(message.sender)}->{_target(message.to)} {MESSAGE_NAMES[message.type]} "
        f"Term:{message.term} Log:{message.log_term}/{message.index}"
    )
    if message.reject:
        text += f" Rejected (Hint: {message.reject_hint})"
    if message.commit:
        text += f" Commit:{message.commit}"
    if message.vote:
        text += f" Vote:{message.vote}"
    entries = message.entries
    if len(entries) == 1:
        text += f" Entries:[{describe_entry(entries[0])}]"
    elif entries:
        lines = "".join(f"\n{indent}  {describe_entry(entry)}" for entry in entries)
        text += f" Entries:[{lines}\n{indent}]"
    if message.snapshot is not None:
        text += f"\n{indent}  Snapshot: {describe_snapshot(message.snapshot)}"
    if message.responses and responses:
        lines = "".join("\n" + describe_message(response, indent + "  ") for response in message.responses)
        text += f" Responses:[{lines}\n{indent}]"
    return text


def describe_ready(ready: Ready) -> str:
    """All that is to be done."""
    text = ""
    if ready.soft_state is not None:
        text += f"Lead:{ready.soft_state.lead} State:{ROLE_NAMES[ready.soft_state.role]}\n"
    if ready.hard_state is not None:
        text += f"HardState {describe_hard_state(ready.hard_state)}\n"
    if ready.read_states:
        states = " ".join(f"{{{state.index} {_ids(list(state.context))}}}" for state in ready.read_states)
        text += f"ReadStates [{states}]\n"
    if ready.entries:
        text += "Entries:\n" + describe_entries(ready.entries)
    if ready.snapshot is not None:
        text += f"Snapshot {describe_snapshot(ready.snapshot)}\n"
    if ready.committed:
        text += "CommittedEntries:\n" + describe_entries(ready.committed)
    if ready.messages:
        text += "Messages:\n" + "".join(f"{describe_message(message)}\n" for message in ready.messages)
    if not text:
        return "<empty Ready>"
    return f"Ready MustSync={str(ready.must_sync).lower()}:\n{text}"
