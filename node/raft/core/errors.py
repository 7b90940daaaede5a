"""What the core answers when it cannot do what it was asked."""


class ProposalDropped(Exception):
    """The proposal is not in the log: no leader, leadership is being transferred, or too much is uncommitted."""

    def __init__(self) -> None:
        super().__init__("raft proposal dropped")


class PeerNotFound(Exception):
    """An answer from somebody who is no member (any more): it is ignored."""

    def __init__(self) -> None:
        super().__init__("raft: cannot step as peer not found")


class NotFromStorage(Exception):
    """A message that only this member's own storage sends came from elsewhere: it is ignored."""

    def __init__(self) -> None:
        super().__init__("raft: cannot step raft local message")
