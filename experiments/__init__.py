"""One paper = one file; a variant = a function in it that returns an `Experiment`."""

import os
from pathlib import Path


def dataset(name: str) -> str:
    """Path of a dataset below the folder named by QUIRE_DATA (default: datasets/)."""
    return str(Path(os.environ.get("QUIRE_DATA", "datasets")) / name)
