"""What can go wrong with the log."""


class LogError(Exception):
    """The log cannot be used."""


class LogDamaged(LogError):
    """What was acknowledged is lost or changed on disk: the member must not start (or go on) with this log."""

    def __init__(self, file: str, offset: int, reason: str) -> None:
        super().__init__(f"write-ahead log damaged: {file}, offset {offset}: {reason}")
        self.file = file
        self.offset = offset
        self.reason = reason


class LogFailed(LogError):
    """The disk refused a write or a sync. What is on disk is not known, so it is never retried: the member ends."""


class LogFull(LogError):
    """No room for a segment. Nothing of the call was written; it may be repeated once there is room."""


class LogLocked(LogError):
    """Another process has the directory."""


class Compacted(LogError):
    """The entries asked for are no longer in the log."""
