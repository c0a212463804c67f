"""Eight CPU devices, quick compilation with a cache, and shape checks at every annotated function boundary."""

import os
from pathlib import Path

# Before JAX is imported. Subprocesses started by tests inherit the same.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["model", "train.losses"], "typecheck.check")

import pytest  # noqa: E402

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def wikitext2() -> Path:
    """Folder of WikiText-2, where the machine has it."""
    folder = Path(os.environ.get("QUIRE_DATA", SHARED_DATA)) / "language_modeling" / "wikitext2"
    if not folder.is_dir():
        pytest.skip(f"WikiText-2 is not at {folder}; set QUIRE_DATA to a folder of datasets")
    return folder
