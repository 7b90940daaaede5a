"""Traces: whole groups, quorums and configuration changes, each command with its exact output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.raft.traces.format import BadTrace, parse, parse_line
from tests.raft.traces.runner import first_difference, trace_files

OWN = Path(__file__).parent / "data"
OTHERS = [Path(folder) for folder in os.environ.get("KVORUM_RAFT_TRACES", "").split(os.pathsep) if folder]


@pytest.mark.parametrize("path", sorted(trace_files(OWN)), ids=lambda path: str(path.relative_to(OWN)))
def test_trace(path: Path) -> None:
    assert first_difference(path) is None


@pytest.mark.parametrize("folder", OTHERS, ids=str)
def test_traces_of_another_folder(folder: Path) -> None:
    paths = list(trace_files(folder))
    assert paths
    assert {str(path): str(difference) for path in paths if (difference := first_difference(path))} == {}


def _folder(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "quorum"
    folder.mkdir()
    (folder / "one.txt").write_text(text, encoding="utf-8")
    return tmp_path


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.raft.traces", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_runner_reports_the_first_difference(tmp_path: Path) -> None:
    text = "# a comment\nvote cfg=(1) votes=(y)\n----\nVoteWon\n\nvote cfg=(1) votes=(n)\n----\nVoteWon\n"
    done = _run(_folder(tmp_path, text))
    assert done.returncode == 1
    assert "one.txt: line 6: vote cfg=(1) votes=(n)" in done.stdout
    assert "--- expected\nVoteWon\n--- got\nVoteLost\n" in done.stdout
    assert "0 of 1 passed" in done.stdout


def test_the_runner_passes_a_folder_without_differences(tmp_path: Path) -> None:
    done = _run(_folder(tmp_path, "vote cfg=(1) votes=(y)\n----\nVoteWon\n"))
    assert done.returncode == 0
    assert "one.txt: passed" in done.stdout


def test_a_folder_without_traces_is_an_error(tmp_path: Path) -> None:
    assert _run(tmp_path).returncode == 2


def test_a_failing_assertion_in_the_core_is_a_difference(tmp_path: Path) -> None:
    folder = tmp_path / "interaction"
    folder.mkdir()
    path = folder / "one.txt"
    path.write_text("add-nodes 1 voters=(1) index=2\n----\nok\n\ncompact 1 99\n----\nok\n", encoding="utf-8")
    difference = first_difference(path)
    assert difference is not None
    assert difference.line == 1


class TestFormat:
    def test_arguments(self) -> None:
        name, arguments = parse_line("cmd 1 a=b c=(1, 2) d=()")
        assert name == "cmd"
        assert [(argument.key, argument.values) for argument in arguments] == [
            ("1", ()),
            ("a", ("b",)),
            ("c", ("1", "2")),
            ("d", ()),
        ]

    def test_input_continuation_and_empty_lines_in_the_output(self) -> None:
        text = "cmd a \\\n  b\nline 1\nline 2\n----\n----\none\n\ntwo\n----\n----\n\nnext\n----\nok\n"
        first, second = parse(text)
        assert (first.positional(), first.input, first.expected) == (["a", "b"], "line 1\nline 2", "one\n\ntwo\n")
        assert (second.name, second.expected) == ("next", "ok\n")

    @pytest.mark.parametrize("text", ["cmd\n", "cmd\n----\n----\nno end\n", "cmd a=(1\n----\nok\n"])
    def test_what_is_not_of_the_form(self, text: str) -> None:
        with pytest.raises(BadTrace):
            list(parse(text))
