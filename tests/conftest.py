"""Eight CPU devices, quick compilation with a cache, and shape checks at every annotated function boundary."""

import os
from collections.abc import Callable
from pathlib import Path

# Before JAX is imported. Subprocesses started by tests inherit the same.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# The second flag has jaxlib 0.10 compile three times as fast; a jaxlib that knows it no more ignores it.
QUICK = " --xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + QUICK
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["model", "train.losses"], "typecheck.check")

import pytest  # noqa: E402

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_dataset() -> Callable[[str], Path]:
    """The folder of a real dataset by its path, such as topic/trec6, where the machine has it."""

    def folder(path: str) -> Path:
        found = Path(os.environ.get("QUIRE_DATA", SHARED_DATA)) / path
        if not found.is_dir():
            pytest.skip(f"{path} is not at {found}; set QUIRE_DATA to a folder of datasets")
        return found

    return folder


@pytest.fixture
def wikitext2(shared_dataset: Callable[[str], Path]) -> Path:
    """Folder of WikiText-2, where the machine has it."""
    return shared_dataset("language_modeling/wikitext2")
