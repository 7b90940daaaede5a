"""Traces of configuration changes: `simple`, `enter-joint`, `leave-joint`."""

from node.raft.core.confchange import ChangeRefused, Configuration, Membership, enter_joint, leave_joint, simple
from node.raft.core.progress import Progress
from node.raft.core.tracker import Tracker
from tests.raft.traces.describe import parse_changes
from tests.raft.traces.format import Command


class ConfChangeTrace:
    """The state between the commands of one file."""

    def __init__(self) -> None:
        self._membership = Membership(Configuration(), {})
        self._tracker = Tracker(10)
        self._last_index = 0  # one more after each command

    def _make(self, is_learner: bool) -> Progress:
        return self._tracker.new_progress(self._last_index, is_learner=is_learner)

    def run(self, command: Command) -> str:
        """Execute a command; returns its output."""
        try:
            return self._run(command)
        except (ChangeRefused, ValueError) as error:
            return f"{error}\n"
        finally:
            self._last_index += 1

    def _run(self, command: Command) -> str:
        changes = parse_changes(command.input)
        before = self._membership
        match command.name:
            case "simple":
                after = simple(before, changes, self._make)
            case "enter-joint":
                auto_leave = any(
                    argument.key == "autoleave" and argument.values == ("true",) for argument in command.arguments
                )
                after = enter_joint(before, changes, self._make, auto_leave=auto_leave)
            case "leave-joint":
                if changes:
                    return "this command takes no input\n"
                after = leave_joint(before)
            case _:
                return "unknown command\n"
        self._membership = after
        lines = [str(after.configuration)]
        lines += [f"{member}: {after.progress[member]}" for member in sorted(after.progress)]
        return "\n".join(lines) + "\n"
