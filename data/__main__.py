"""Looks at data from the shell.

    python -m data tokenizer SOURCE… --kind bpe --vocab-size 8000 --out FOLDER   trains and saves a tokenizer
    python -m data show SOURCE --clean html,white_space -n 3                     prints documents
    python -m data records FILE --format conll -n 3                              prints the columns of records

A SOURCE is a file, a folder, a glob or the word python_docs.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice

from pydantic import ValidationError

from data import sources as reading
from data import tokenizer as tokenizers
from data.cleaning import clean
from data.config import ByteBPE, Bytes, Characters, Cleaning, Files, PythonDocs, SentencePiece, Source, WordPiece
from data.document import DataError, Document, Skipped
from data.record_formats import read_columns
from data.task_config import Records

_MEASURED_CHARACTERS = 1_000_000
_KINDS = {
    "unigram": lambda vocab_size: SentencePiece(algorithm="unigram", vocab_size=vocab_size),
    "bpe": lambda vocab_size: SentencePiece(algorithm="bpe", vocab_size=vocab_size),
    "wordpiece": lambda vocab_size: WordPiece(vocab_size=vocab_size),
    "byte_bpe": lambda vocab_size: ByteBPE(vocab_size=vocab_size),
    "characters": lambda _: Characters(),
    "bytes": lambda _: Bytes(),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns the exit status: 2 for a user's mistake, told in one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        if getattr(options, "n", 1) < 1:
            raise DataError(f"-n must be at least 1, got {options.n}")
        options.command(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])).replace("_", "-")
        print(f"error: {place + ': ' if place else ''}{first['msg']}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data", description="Look at data, train tokenizers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=description, description=description)
        sub.set_defaults(command=command)
        sub.add_argument("sources", nargs="+", metavar="SOURCE", help="a file, folder, glob, or: python_docs")
        sub.add_argument("--text-field", default="text", help="field or column with the text (default: text)")
        sub.add_argument("--document", choices=("file", "paragraph", "line"), default="file", help="how .txt is cut")
        sub.add_argument("--clean", default="", metavar="STEPS", help="cleaning steps, such as html,white_space")
        return sub

    train = add("tokenizer", _train_tokenizer, "train a tokenizer and save it")
    train.add_argument("--kind", choices=_KINDS, default="unigram", help="(default: unigram)")
    train.add_argument("--vocab-size", type=int, default=8192, help="pieces, where they are learned (default: 8192)")
    train.add_argument("--out", required=True, metavar="FOLDER", help="where the tokenizer is saved")
    train.add_argument("--json", action="store_true", help="print the table as JSON")

    show = add("show", _show, "print documents before and after cleaning")
    show.add_argument("-n", type=int, default=3, help="how many documents (default: 3)")
    show.add_argument("--tokenizer", metavar="FOLDER", help="print the pieces of this tokenizer, too")

    description = "print the columns of labelled records"
    records = commands.add_parser("records", help=description, description=description)
    records.set_defaults(command=_show_records)
    records.add_argument("path", metavar="FILE", help="a file, folder or glob")
    records.add_argument("--format", default="auto", help="see `Records` in data/task_config.py (default: by ending)")
    records.add_argument("--columns", default="", metavar="A,B", help="their names, where the file has none")
    records.add_argument("--pattern", help="a regular expression with named groups")
    records.add_argument("--encoding", default="utf-8", help="(default: utf-8)")
    records.add_argument("-n", type=int, default=3, help="how many records (default: 3)")
    return parser


def _sources(options: argparse.Namespace) -> list[Source]:
    return [
        PythonDocs()
        if path == "python_docs"
        else Files(path=path, text_field=options.text_field, document=options.document)
        for path in options.sources
    ]


def _cleaning(options: argparse.Namespace) -> Cleaning:
    """Turns `html,white_space,normalize=NFC` into the model; a word alone means true."""
    steps = (step.strip().replace("-", "_").partition("=") for step in options.clean.split(",") if step.strip())
    return Cleaning.model_validate({name: value or True for name, _, value in steps})


def _documents(options: argparse.Namespace) -> Iterator[Document]:
    for source in _sources(options):
        yield from reading.read(source, Skipped())


def _train_tokenizer(options: argparse.Namespace) -> None:
    config = _KINDS[options.kind](options.vocab_size)
    cleaning = _cleaning(options)
    tokenizer = tokenizers.train(config, (clean(document.text, cleaning) for document in _documents(options)))
    tokenizer.save(options.out)
    table = _measure(tokenizer, (clean(document.text, cleaning) for document in _documents(options)))
    if options.json:
        print(json.dumps({"folder": options.out, "kind": options.kind, **table}, ensure_ascii=False))
        return
    rows = [("folder", options.out), ("kind", options.kind), ("vocabulary", f"{table['vocab_size']:,}")]
    rows += [(name.replace("_", " "), f"{table[name]:.3f}") for name in ("characters_per_token", "bytes_per_token")]
    rows += [("pieces", " ".join(table["pieces"]))]
    for name, value in rows:
        print(f"{name:22}{value}")


def _measure(tokenizer: tokenizers.Tokenizer, texts: Iterator[str]) -> dict[str, object]:
    """Returns how well the tokenizer compresses the start of the texts, and the pieces of its first words."""
    sample = ""
    while len(sample) < _MEASURED_CHARACTERS and (text := next(texts, None)) is not None:
        sample += text[:_MEASURED_CHARACTERS]
    if not sample:
        raise DataError("there is no text")
    ids = tokenizer.encode(sample)
    return {
        "vocab_size": tokenizer.vocab_size,
        "characters_per_token": len(sample) / max(1, len(ids)),
        "bytes_per_token": len(sample.encode()) / max(1, len(ids)),
        "pieces": [piece.replace("\n", "\\n") for piece in tokenizer.pieces(ids[:24])],
    }


def _show(options: argparse.Namespace) -> None:
    cleaning = _cleaning(options)
    tokenizer = tokenizers.load(options.tokenizer) if options.tokenizer else None
    for document in islice(_documents(options), options.n):
        text = clean(document.text, cleaning)
        print(f"--- {document.origin} ({len(document.text):,} characters)\n{_start(document.text)}")
        if text != document.text:
            print(f"--- cleaned ({len(text):,} characters)\n{_start(text)}")
        if tokenizer:
            ids = tokenizer.encode(text)
            print(f"--- {len(ids):,} tokens\n{' '.join(tokenizer.pieces(ids[:100]))}")


def _show_records(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in ("path", "format", "pattern", "encoding")}
    source = Records(**given, columns=tuple(filter(None, options.columns.split(","))))
    for columns, origin in islice(read_columns(source, Skipped().handler("fail")), options.n):
        print(f"--- {origin}")
        for name, value in columns.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            print(f"{name}: {_start(text)}".encode("utf-8", "replace").decode())  # it may hold bytes of no character


def _start(text: str) -> str:
    return text if len(text) <= 1000 else f"{text[:1000]}…"


if __name__ == "__main__":
    sys.exit(main())
