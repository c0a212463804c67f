"""The embedded corpus: English documentation prose that comes with every Python interpreter.

Documents are the topics of the language reference (`pydoc_data.topics`), the docstrings of the standard
library's modules, classes and functions (parsed, never imported) and those of the built-in C modules.
Only prose is kept, so that a small model learns to write sentences: see `_prose`.
"""

import ast
import builtins
import hashlib
import importlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from data.document import Document

MIN_CHARACTERS = 200
_SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__",
    "turtledemo", "encodings", "ensurepip", "pydoc_data", "_pyrepl",
}  # fmt: skip
_C_MODULES = (
    "array", "atexit", "binascii", "cmath", "errno", "faulthandler", "gc", "itertools", "marshal",
    "math", "select", "sys", "time", "unicodedata", "zlib", "_asyncio", "_bisect", "_codecs",
    "_collections", "_csv", "_datetime", "_decimal", "_functools", "_hashlib", "_heapq", "_io",
    "_json", "_operator", "_pickle", "_random", "_socket", "_sre", "_ssl", "_struct", "_thread",
    "_weakref",
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z][a-z’'-]*[.,:;!?)\"”]*")


@lru_cache(maxsize=1)
def documents() -> tuple[Document, ...]:
    """Returns the corpus, in an order that depends on the interpreter alone. Takes a few seconds once."""
    seen: set[str] = set()
    kept = []
    for raw, origin in _raw_documents():
        text = _prose(inspect.cleandoc(raw))
        if len(text) >= MIN_CHARACTERS and text not in seen:
            seen.add(text)
            kept.append(Document(text, origin))
    return tuple(kept)


@lru_cache(maxsize=1)
def signature() -> str:
    """Returns a hash of what the corpus is made from, far quicker than making it."""
    digest = hashlib.sha256(f"{sys.version}|{Path(__file__).read_text()}".encode())
    for path in _library_files():
        status = path.stat()
        digest.update(f"|{path}|{status.st_size}|{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _prose(text: str) -> str:
    """Returns the paragraphs of `text` that are prose, one blank line apart.

    A paragraph (lines between blank lines) is prose if it has at least 6 words, 3 in 4 of its space-separated
    items are plain words, and neither an interactive session, a grammar rule nor a signature is in it.
    An indented paragraph moves to the margin; a title goes with the table under it if that is dropped.
    """
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = inspect.cleandoc(paragraph).strip().split("\n")
        joined = "\n".join(line.rstrip() for line in lines)
        if re.search(r">>>|::=|->|={4}|-{4}|\*{4}|\w\(.*=.*\)$|^\w+\([^)]*\)$", joined, re.MULTILINE):
            continue
        items = joined.split()
        plain = sum(_WORD.fullmatch(item.lstrip("(\"“'*`")) is not None for item in items)
        if len(items) >= 6 and plain >= 0.75 * len(items):
            kept.append(joined)
    return "\n\n".join(kept)


def _raw_documents() -> Iterator[tuple[str, str]]:
    """Yields (text, origin) of everything that may become a document."""
    topics = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        yield topics[name], f"topic {name}"
    root = Path(sysconfig.get_path("stdlib"))
    for path in _library_files():
        origin = path.relative_to(root).as_posix()
        try:
            # Whether warnings are errors must not change the corpus.
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # some files of the standard library are bad on purpose
        for node in _definitions(tree):
            if docstring := ast.get_docstring(node):
                yield docstring, f"{origin}:{getattr(node, 'lineno', 1)}"
    for name in ("builtins", *_C_MODULES):
        try:
            module = builtins if name == "builtins" else importlib.import_module(name)
        except ImportError:
            continue  # not built into this interpreter
        yield from _object_docs(module, name)


def _library_files() -> list[Path]:
    found = []
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the module, its classes and functions, but does not descend into the bodies of functions."""
    yield node
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.ClassDef):
            yield from _definitions(child)


def _object_docs(module: object, origin: str) -> Iterator[tuple[str, str]]:
    """Yields the docstrings of a C module, its functions, its classes and their methods."""
    for name, value in [("", module), *sorted(vars(module).items())]:
        members = sorted(vars(value).items()) if isinstance(value, type) else []
        for member_name, member in [("", value), *members]:
            docstring = getattr(member, "__doc__", None) if callable(member) or member is module else None
            if isinstance(docstring, str):
                yield docstring, ".".join(part for part in (origin, name, member_name) if part)
