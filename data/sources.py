"""Where text comes from: `read` yields a source's documents, `fingerprint` names its content."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from data.config import Files, HuggingFace, Source
from data.document import DataError, Document, Skipped
from data.files import find, read_files
from data.huggingface import fingerprint_huggingface, read_huggingface
from data.record_formats import files_beside, record_files
from data.records import as_text, read_records
from data.storage import sha256_of_file, write_atomically
from data.task_config import Records

__all__ = ["DataError", "Document", "Skipped", "fingerprint", "read"]


def read(source: Source, skipped: Skipped) -> Iterator[Document]:
    """Yields the documents of `source` in a fixed order; of records, the field `text`.

    Raises DataError for input that cannot be used; with `on_error="skip"`, bad records go to `skipped`
    instead.
    """
    if isinstance(source, Files):
        yield from read_files(source, skipped)
    elif isinstance(source, HuggingFace):
        yield from read_huggingface(source)
    elif isinstance(source, Records):
        bad = skipped.handler(source.on_error)
        for record in read_records(source, {"text": True}, skipped):
            try:
                yield Document(as_text(record.fields["text"], f"{record.origin}: text"), record.origin)
            except DataError as error:
                bad(str(error))
    else:
        from data import python_docs

        yield from python_docs.documents()


def fingerprint(source: Source, cache_dir: str | Path) -> str:
    """Returns a hash of the content of `source` (hexadecimal).

    Hashes of files are remembered in `cache_dir` by path, size and times, so that a second call is quick.
    """
    if isinstance(source, HuggingFace):
        return fingerprint_huggingface(source)
    memo = _Memo(Path(cache_dir) / "fingerprints.json")
    digest = hashlib.sha256()
    if isinstance(source, Files | Records):
        for path in find(source) if isinstance(source, Files) else _record_files(source):
            digest.update(f"{path.name}\n{_file_hash(path, memo)}\n".encode())
    else:
        from data import python_docs

        key = f"python_docs {python_docs.signature()}"
        if key not in memo.known:
            text = "\0".join(document.text for document in python_docs.documents())
            memo.known[key] = hashlib.sha256(text.encode()).hexdigest()
        digest.update(memo.known[key].encode())
    memo.save()
    return digest.hexdigest()


def _record_files(source: Records) -> list[Path]:
    paths = record_files(source)
    return paths + files_beside(source, paths)


def _file_hash(path: Path, memo: "_Memo") -> str:
    try:
        status = path.stat()
        key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        if key not in memo.known:
            memo.known[key] = sha256_of_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return memo.known[key]


class _Memo:
    """Known hashes in a JSON file. Losing it costs time only, so a damaged file counts as an empty one."""

    def __init__(self, path: Path):
        self._path = path
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        self.known: dict[str, str] = known if isinstance(known, dict) else {}
        self._saved = dict(self.known)

    def save(self) -> None:
        if self.known != self._saved:
            write_atomically(self._path, json.dumps(self.known, indent=0).encode())
