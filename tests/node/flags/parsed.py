"""`parse` as the tests of this folder call it: what came of a command line, an environment and files."""

from collections.abc import Mapping

from node.config import Config
from node.flags import Exit, Start, parse


def run(
    *arguments: str, environ: Mapping[str, str] | None = None, files: Mapping[str, bytes] | None = None
) -> Start | Exit:
    def read_file(path: str) -> bytes:
        if files is None or path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return files[path]

    return parse(["kvorum", *arguments], environ or {}, read_file)


def config(
    *arguments: str, environ: Mapping[str, str] | None = None, files: Mapping[str, bytes] | None = None
) -> Config:
    result = run(*arguments, environ=environ, files=files)
    assert isinstance(result, Start), result
    return result.config


def error(
    *arguments: str, environ: Mapping[str, str] | None = None, files: Mapping[str, bytes] | None = None
) -> tuple[str, str]:
    """What the log says last, and its field `error`, of a command line that exits with 1."""
    result = run(*arguments, environ=environ, files=files)
    assert isinstance(result, Exit)
    assert (result.code, result.stdout, result.stderr) == (1, "", "")
    note = result.notes[-1]
    return note.msg, str(note.fields["error"])
