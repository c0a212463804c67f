"""Documents from a Hugging Face dataset, by the optional `datasets` package."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.config import HuggingFace
from data.document import DataError, Document


def read_huggingface(source: HuggingFace) -> Iterator[Document]:
    """Yields the text column's rows; raises DataError if the dataset, split or column is not there."""
    if source.fields or source.replace:
        raise DataError(f"{source.path}: fields and replace are for tasks; a language model reads text_field alone")
    dataset = _load(source.path, source.name, source.split)
    column = source.text_field
    if column not in dataset.column_names:
        raise DataError(f"{source.path}: has no column {column!r}; its columns are: {', '.join(dataset.column_names)}")
    for index, row in enumerate(dataset.select_columns([column])):
        text = row[column]
        if not isinstance(text, str):
            raise DataError(f"{source.path}[{index}]: column {column!r} must hold text, found {type(text).__name__}")
        yield Document(text, f"{source.path}[{index}]")


def read_rows(source: HuggingFace) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields each row's columns and its place, such as `glue[17]`."""
    for index, row in enumerate(_load(source.path, source.name, source.split)):
        yield row, f"{source.path}[{index}]"


def fingerprint_huggingface(source: HuggingFace) -> str:
    """Returns the dataset's own fingerprint, which changes with its content."""
    return str(_load(source.path, source.name, source.split)._fingerprint)  # the package has no public name for it


# A look at the hub takes seconds, and each dataset is needed for its fingerprint and for its text.
@lru_cache(maxsize=4)
def _load(path: str, name: str | None, split: str):
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{path}: reading it needs the datasets package: pip install 'quire[hf]'") from error
    try:
        folder = Path(path)
        if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, name, split=split)
    except Exception as error:  # the package raises many kinds: all say that the dataset cannot be had
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: the dataset cannot be loaded: {reason}") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            raise DataError(f"{path}: has no split {split!r}; its splits are: {', '.join(loaded)}")
        loaded = loaded[split]
    return loaded
