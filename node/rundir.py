"""The run directory: where the sockets between the processes of one generation lie.

`member/run` in the data directory is a link to the one in use, so that whoever holds the data directory's lock can
remove what a killed member left behind.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SOCKET_PATH_MAX_BYTES: Final = 107
"""sun_path of unix(7) without its final NUL."""

SOCKET_NAME_MAX_BYTES: Final = 24
"""What the names of the sockets in it may have."""

_PREFIX: Final = "kvorum-"


def make_run_dir(data_dir: str, environ: Mapping[str, str] = os.environ) -> str:
    """Make a directory, 0700, of a new name, and remove the one that the data directory still links to.

    It lies under $XDG_RUNTIME_DIR, else $TMPDIR, else /tmp. Raises OSError: also when sockets in it would have too
    long a path.
    """
    link = _link(data_dir)
    _remove_linked(link)
    base = Path(environ.get("XDG_RUNTIME_DIR") or environ.get("TMPDIR") or "/tmp").absolute()
    path = base / (_PREFIX + os.urandom(6).hex())
    length = len(os.fsencode(path)) + 1 + SOCKET_NAME_MAX_BYTES
    if length > SOCKET_PATH_MAX_BYTES:
        raise OSError(
            f"the path of a socket in {path} may have {length} bytes, and {SOCKET_PATH_MAX_BYTES} are allowed: "
            "set XDG_RUNTIME_DIR to a shorter directory"
        )
    path.mkdir(0o700)
    link.symlink_to(path)
    return str(path)


def remove_run_dir(data_dir: str, run_dir: str) -> None:
    """Remove a generation's directory. If it cannot be removed it stays, and is found again through the link."""
    shutil.rmtree(run_dir, ignore_errors=True)
    if not os.path.lexists(run_dir):
        _link(data_dir).unlink(missing_ok=True)


def _link(data_dir: str) -> Path:
    return Path(data_dir) / "member" / "run"


def _remove_linked(link: Path) -> None:
    try:
        path = link.readlink()
    except FileNotFoundError:
        return
    try:
        own = path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        own = False
    if own and path.name.startswith(_PREFIX):
        shutil.rmtree(path, ignore_errors=True)
    link.unlink()
