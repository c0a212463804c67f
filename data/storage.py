"""Durable small writes and checksums: what the token cache and the tokenizer folder rest on."""

import contextlib
import hashlib
import os
import socket
from pathlib import Path

from data.document import DataError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` so that a reader sees the old file or all of the new one, even after a power cut.

    The temporary name holds the host and process id, so two writers of the same file never share one.
    Raises DataError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk it would keep the disk full
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_abandoned(folder: Path) -> None:
    """Deletes temporary files that dead processes of this host left in `folder`."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        if not _is_alive(int(path.name.split(".")[-2])):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # In a container nobody may ever reap a killed process.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's process, or a system without /proc


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
