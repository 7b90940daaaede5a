"""Traces of whole groups: members in one process, their messages delivered when a command says so.

| command | what |
|---|---|
| add-nodes COUNT [voters=(…)] [learners=(…)] [index=N] [content=TEXT] [options of `CONFIG_OPTIONS`] | create members |
| restart ID | crash and start again with what is on disk; messages on their way from or to it are lost |
| campaign, forget-leader, raft-log, status ID | |
| propose ID TEXT, read-index ID CONTEXT | |
| propose-conf-change ID [v1=BOOL] [transition=auto, implicit, explicit], input: v1 l2 r3 u4 | |
| transfer-leadership from=ID to=ID | |
| report-unreachable BY ID, report-snapshot BY ID [failed=true], send-snapshot FROM TO | |
| compact ID INDEX | drop the log up to an index |
| tick ID COUNT, tick-heartbeat ID, tick-election ID | the latter two: as many ticks as the timeout has |
| set-randomized-election-timeout ID timeout=TICKS | |
| process-ready, process-append-thread, process-apply-thread ID… | |
| deliver-msgs [ID…] [drop=(ID…)] [type=NAME] | |
| stabilize [ID…] [log-level=LEVEL] | do all there is to do until nothing is |
| log-level LEVEL | what is written from now on; none: nothing but errors |
| raft-state | every member's role |
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from node.raft.core import (
    APPEND_THREAD,
    APPLY_THREAD,
    ConfChange,
    Config,
    ConfState,
    HardState,
    MemoryStorage,
    Message,
    MessageType,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    Snapshot,
    Transition,
)
from node.raft.core.messages import MESSAGE_NAMES, NO_LIMIT, ROLE_NAMES
from tests.raft.traces.describe import (
    describe_entries,
    describe_message,
    describe_ready,
    parse_changes,
)
from tests.raft.traces.format import Argument, BadTrace, Command, parse_line
from tests.raft.traces.member import CONFIG_OPTIONS, Member, parse_bool
from tests.raft.traces.output import LEVELS, QUIET, CommandFailed, Output

_THREADS = (APPEND_THREAD, APPLY_THREAD)
_TRANSITIONS = {
    "auto": Transition.AUTO,
    "implicit": Transition.JOINT_IMPLICIT,
    "explicit": Transition.JOINT_EXPLICIT,
}


class InteractionTrace:
    """The state between the commands of one file."""

    def __init__(self) -> None:
        self._output = Output()
        self._members: list[Member] = []
        self._messages: list[Message] = []  # on their way

    def run(self, command: Command) -> str:
        """Execute a command; returns its output."""
        output = self._output
        try:
            if command.name == "propose-conf-change":
                self._propose_conf_change(command)
            else:
                self._run(command)
                for line in command.input.split("\n") if command.input else ():
                    name, arguments = parse_line(line)
                    self._run(replace(command, name=name, arguments=arguments, input=""))
        except (CommandFailed, ProposalDropped) as error:
            if output.level >= QUIET:
                return str(error)
            output.write(str(error))
        return output.take() or "ok"

    def _run(self, command: Command) -> None:
        if command.name == "_breakpoint":
            return
        method = _COMMANDS.get(command.name)
        if method is None:
            raise CommandFailed("unknown command")
        method(self, command)

    def _ids(self, command: Command) -> list[int]:
        return [int(text) for text in command.positional()]

    def _member(self, id_: int) -> Member:
        if not 1 <= id_ <= len(self._members):
            raise BadTrace(f"line: there is no member {id_}")
        return self._members[id_ - 1]

    def _node(self, command: Command) -> RawNode:
        return self._member(self._ids(command)[0]).node

    # Members.

    def _add_nodes(self, command: Command) -> None:
        options: dict[str, Any] = {}
        voters: tuple[int, ...] = ()
        learners: tuple[int, ...] = ()
        index = 0
        content = b""
        for argument in command.arguments[1:]:
            match argument.key:
                case "voters":
                    voters = tuple(map(int, argument.values))
                case "learners":
                    learners = tuple(map(int, argument.values))
                case "index":
                    index = int(argument.values[0])
                case "content":
                    content = argument.values[0].encode()
                case key if key in CONFIG_OPTIONS:
                    name, convert = CONFIG_OPTIONS[key]
                    options[name] = convert(argument.values[0])
                case key:
                    raise CommandFailed(f"unknown option {key}")
        snapshot = Snapshot(0, 0, ConfState())
        if voters or learners or index or content:
            if index <= 1:
                raise CommandFailed("index must be specified as > 1 due to bootstrap")
            snapshot = Snapshot(index, 1, ConfState(voters, (), learners), content)
        for _ in range(int(command.arguments[0].key)):
            id_ = len(self._members) + 1
            storage = MemoryStorage()
            if snapshot.index:
                storage.install(snapshot)
            config = Config(
                id=id_,
                election_ticks=3,
                heartbeat_ticks=1,
                applied=index,
                **{"max_inflight_messages": 1 << 31} | options,
            )
            node = RawNode(config, storage, storage.hard_state, snapshot.conf_state, Random(id_), self._output.log)
            self._members.append(Member(node, storage, config, history=[snapshot]))

    def _restart(self, command: Command) -> None:
        id_ = self._ids(command)[0]
        self._messages = [message for message in self._messages if id_ not in (message.to, message.sender)]
        self._member(id_).restart(self._output.log)

    # What a member is told.

    def _campaign(self, command: Command) -> None:
        self._node(command).campaign()

    def _forget_leader(self, command: Command) -> None:
        self._node(command).forget_leader()

    def _propose(self, command: Command) -> None:
        id_, data = command.positional()
        self._member(int(id_)).node.propose(data.encode())

    def _propose_conf_change(self, command: Command) -> None:
        single = False
        transition = Transition.AUTO
        for argument in command.arguments[1:]:
            for value in argument.values:
                match argument.key:
                    case "v1":
                        single = parse_bool(value)
                    case "transition":
                        if value not in _TRANSITIONS:
                            raise CommandFailed(f"unknown transition {value}")
                        transition = _TRANSITIONS[value]
                    case key:
                        raise CommandFailed(f"unknown command {key}")
        try:
            changes = parse_changes(command.input)
        except ValueError as error:
            raise CommandFailed(str(error)) from error
        if single and (len(changes) > 1 or transition is not Transition.AUTO):
            raise CommandFailed("v1 conf change can only have one operation and no transition")
        node = self._member(int(command.arguments[0].key)).node
        node.propose_conf_change(ConfChange(changes, transition), single=single)

    def _read_index(self, command: Command) -> None:
        id_, context = command.positional()
        self._member(int(id_)).node.read_index(context.encode())

    def _report_unreachable(self, command: Command) -> None:
        by, member = self._ids(command)
        self._member(by).node.report_unreachable(member)

    def _report_snapshot(self, command: Command) -> None:
        by, member = self._ids(command)
        failed = any(argument == Argument("failed", ("true",)) for argument in command.arguments)
        self._member(by).node.report_snapshot(member, failed=failed)

    def _transfer_leadership(self, command: Command) -> None:
        values = {argument.key: int(argument.values[0]) for argument in command.arguments}
        self._member(values["from"]).node.transfer_leader(values["to"])

    def _set_randomized_election_timeout(self, command: Command) -> None:
        values = {argument.key: int(argument.values[0]) for argument in command.arguments if argument.values}
        self._node(command).set_randomized_election_timeout(values["timeout"])

    def _tick(self, command: Command) -> None:
        id_, count = self._ids(command)
        self._tick_times(id_, count)

    def _tick_election(self, command: Command) -> None:
        id_ = self._ids(command)[0]
        self._tick_times(id_, self._member(id_).config.election_ticks)

    def _tick_heartbeat(self, command: Command) -> None:
        id_ = self._ids(command)[0]
        self._tick_times(id_, self._member(id_).config.heartbeat_ticks)

    def _tick_times(self, id_: int, count: int) -> None:
        for _ in range(count):
            self._member(id_).node.tick()

    # What a member holds.

    def _compact(self, command: Command) -> None:
        id_, index = self._ids(command)
        storage = self._member(id_).storage
        if index < storage.first_index:
            raise CommandFailed("requested index is unavailable due to compaction")
        storage.compact(index)
        self._show_log(id_)

    def _raft_log(self, command: Command) -> None:
        self._show_log(self._ids(command)[0])

    def _show_log(self, id_: int) -> None:
        storage = self._member(id_).storage
        first, last = storage.first_index, storage.last_index
        if last < first:
            self._output.write(f"log is empty: first index={first}, last index={last}")
        else:
            self._output.write(describe_entries(storage.read(first, last + 1, NO_LIMIT)))

    def _raft_state(self, command: Command) -> None:
        for member in self._members:
            status = member.node.status()
            configuration = status.configuration
            voter = "Voter" if status.id in configuration.incoming | configuration.outgoing else "Non-Voter"
            self._output.write(
                f"{status.id}: {ROLE_NAMES[status.role]} ({voter}) Term:{status.term} Lead:{status.lead}\n"
            )

    def _status(self, command: Command) -> None:
        for id_, progress in sorted(self._node(command).status().progress.items()):
            self._output.write(f"{id_}: {progress}\n")

    def _log_level(self, command: Command) -> None:
        self._set_level(command.arguments[0].key)

    def _set_level(self, name: str) -> None:
        if name.upper() not in LEVELS:
            raise CommandFailed(f"log levels must be either of [{' '.join(LEVELS)}]")
        self._output.level = LEVELS.index(name.upper())

    # What a member has to do.

    def _each(self, command: Command, title: str, work: Callable[[int], None]) -> None:
        ids = self._ids(command)
        for id_ in ids:
            if len(ids) > 1:
                self._titled(id_, title, work)
            else:
                work(id_)

    def _process_ready(self, command: Command) -> None:
        self._each(command, "handling Ready", self._handle_ready)

    def _process_append_thread(self, command: Command) -> None:
        self._each(command, "processing append thread", self._append_one)

    def _process_apply_thread(self, command: Command) -> None:
        self._each(command, "processing apply thread", self._apply_one)

    def _handle_ready(self, id_: int) -> None:
        member = self._member(id_)
        ready = member.node.ready()
        self._output.write(describe_ready(ready))
        asynchronous = member.config.async_storage_writes
        if not asynchronous:
            member.write(ready.hard_state, ready.entries, ready.snapshot)
            member.apply(ready.committed)
        for message in ready.messages:
            if message.to == APPEND_THREAD:
                member.append_work.append(message)
            elif message.to == APPLY_THREAD:
                member.apply_work.append(message)
            else:
                self._messages.append(message)
        if not asynchronous:
            member.node.advance()

    def _append_one(self, id_: int) -> None:
        member = self._member(id_)
        if not member.append_work:
            self._output.write("no append work to perform")
            return
        work = member.append_work.pop(0)
        self._output.write(f"Processing:\n{describe_message(work, responses=False)}\n")
        hard_state = HardState(work.term, work.vote, work.commit)
        member.write(hard_state if any(hard_state) else None, work.entries, work.snapshot)
        self._respond(work)

    def _apply_one(self, id_: int) -> None:
        member = self._member(id_)
        if not member.apply_work:
            self._output.write("no apply work to perform")
            return
        work = member.apply_work.pop(0)
        self._output.write(f"Processing:\n{describe_message(work, responses=False)}\n")
        member.apply(work.entries)
        self._respond(work)

    def _respond(self, work: Message) -> None:
        self._output.write("Responses:\n")
        for response in work.responses:
            self._output.write(f"{describe_message(response)}\n")
        self._messages += work.responses

    # The network.

    def _send_snapshot(self, command: Command) -> None:
        sender, to = self._ids(command)
        member = self._member(sender)
        message = Message(MessageType.SNAP, to, sender, member.node.status().term, snapshot=member.history[-1])
        self._messages.append(message)
        self._output.write(describe_message(message))

    def _deliver_msgs(self, command: Command) -> None:
        type_: str | None = None
        recipients: list[tuple[int, bool]] = []
        for argument in command.arguments:
            if not argument.values:
                recipients.append((int(argument.key), False))
            elif argument.key == "drop":
                for id_ in map(int, argument.values):
                    if (id_, False) in recipients:
                        raise BadTrace(f"can't both deliver and drop msgs to {id_}")
                    recipients.append((id_, True))
            elif argument.key == "type":
                type_ = argument.values[-1]
            else:
                raise BadTrace(f"unknown argument {argument.key}")
        if not sum([self._deliver(id_, type_, drop=drop) for id_, drop in recipients]):
            self._output.write("no messages\n")

    def _split(self, id_: int, type_: str | None, *, drop: bool) -> tuple[list[Message], list[Message]]:
        """(those meant, the rest). What stays within a member cannot be dropped."""
        meant: list[Message] = []
        rest: list[Message] = []
        for message in self._messages:
            local = message.sender == message.to or message.sender in _THREADS
            chosen = message.to == id_ and not (drop and local) and type_ in (None, MESSAGE_NAMES[message.type])
            (meant if chosen else rest).append(message)
        return meant, rest

    def _deliver(self, id_: int, type_: str | None, *, drop: bool) -> int:
        meant, self._messages = self._split(id_, type_, drop=drop)
        for message in meant:
            self._output.write(f"{'dropped: ' if drop else ''}{describe_message(message)}\n")
            if drop:
                continue
            try:
                self._member(id_).node.step(message)
            except (ProposalDropped, PeerNotFound) as error:
                self._output.write(f"{error}\n")
        return len(meant)

    def _stabilize(self, command: Command) -> None:
        before = self._output.level
        for argument in command.arguments:
            if argument.key == "log-level" and argument.values:
                self._set_level(argument.values[0])
        try:
            ids = self._ids(command) or list(range(1, len(self._members) + 1))
            while self._stabilize_once(ids):
                pass
        finally:
            self._output.level = before

    def _stabilize_once(self, ids: list[int]) -> bool:
        """Returns whether there was anything to do."""
        busy = False
        for id_ in ids:
            if self._member(id_).node.has_ready():
                busy = True
                self._titled(id_, "handling Ready", self._handle_ready)
        for id_ in ids:
            if self._split(id_, None, drop=False)[0]:
                busy = True
                self._titled(id_, "receiving messages", self._deliver_all)
        for id_ in ids:
            member = self._member(id_)
            if member.append_work:
                busy = True
                self._titled(id_, "processing append thread", self._append_all)
        for id_ in ids:
            member = self._member(id_)
            if member.apply_work:
                busy = True
                self._titled(id_, "processing apply thread", self._apply_all)
        return busy

    def _titled(self, id_: int, title: str, work: Callable[[int], None]) -> None:
        self._output.write(f"> {id_} {title}\n")
        with self._output.indented():
            work(id_)

    def _deliver_all(self, id_: int) -> None:
        self._deliver(id_, None, drop=False)

    def _append_all(self, id_: int) -> None:
        while self._member(id_).append_work:
            self._append_one(id_)

    def _apply_all(self, id_: int) -> None:
        while self._member(id_).apply_work:
            self._apply_one(id_)


_COMMANDS: dict[str, Callable[[InteractionTrace, Command], None]] = {
    "add-nodes": InteractionTrace._add_nodes,
    "campaign": InteractionTrace._campaign,
    "compact": InteractionTrace._compact,
    "deliver-msgs": InteractionTrace._deliver_msgs,
    "forget-leader": InteractionTrace._forget_leader,
    "log-level": InteractionTrace._log_level,
    "process-append-thread": InteractionTrace._process_append_thread,
    "process-apply-thread": InteractionTrace._process_apply_thread,
    "process-ready": InteractionTrace._process_ready,
    "propose": InteractionTrace._propose,
    "raft-log": InteractionTrace._raft_log,
    "raft-state": InteractionTrace._raft_state,
    "read-index": InteractionTrace._read_index,
    "report-snapshot": InteractionTrace._report_snapshot,
    "report-unreachable": InteractionTrace._report_unreachable,
    "restart": InteractionTrace._restart,
    "send-snapshot": InteractionTrace._send_snapshot,
    "set-randomized-election-timeout": InteractionTrace._set_randomized_election_timeout,
    "stabilize": InteractionTrace._stabilize,
    "status": InteractionTrace._status,
    "tick": InteractionTrace._tick,
    "tick-election": InteractionTrace._tick_election,
    "tick-heartbeat": InteractionTrace._tick_heartbeat,
    "transfer-leadership": InteractionTrace._transfer_leadership,
}
