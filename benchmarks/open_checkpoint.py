"""How quickly a large checkpoint lists, and how much memory a slice of one array takes.

    python benchmarks/open_checkpoint.py [--gigabytes 4] [--folder FOLDER]

Writes a checkpoint of a decoder's arrays as eight devices write them, in `FOLDER` (a temporary one by default), and
opens it in new processes. Seconds are those within the process, without the start of Python and imports; memory is the
peak of the whole process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_OPENED = """
import re, sys, time
from pathlib import Path
from model.tree import archives
import tensorstore

def most():  # ru_maxrss would have the parent's, too
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = most()
start = time.perf_counter()
archive = archives.open_archive(sys.argv[1])
total = sum(array.nbytes for array in archive.values())
print(f"listed {len(archive)} arrays of {total / 1e9:.2f} GB in {time.perf_counter() - start:.3f} s")
name = "layers/7/up/kernel"
start = time.perf_counter()
part = archive[name][100:110, :50]
peak = most()
print(f"sliced {part.shape} of {archive[name].nbytes / 1e6:.0f} MB in {time.perf_counter() - start:.3f} s")
print(f"peak memory {peak / 1e3:.0f} MB, of which {before / 1e3:.0f} MB before anything was opened")
"""


def write(folder: Path, gigabytes: float) -> None:
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("fsdp", "tensor"))
    placed = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    width, count = 4096, max(8, round(gigabytes * 1e9 / (4096 * 4096 * 4)))
    random = np.random.default_rng(0)
    layers = {
        str(i): {"up": {"kernel": jax.device_put(random.random((width, width), np.float32), placed)}}
        for i in range(count)
    }
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder, {"layers": layers})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / "checkpoint"
        start = time.perf_counter()
        write(folder, options.gigabytes)
        print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
        for _ in range(2):
            subprocess.run([sys.executable, "-c", _OPENED, str(folder)], check=True)
        start = time.perf_counter()
        listing = subprocess.run(
            [sys.executable, "-m", "model.tree", "tree", str(folder)], check=True, capture_output=True, text=True
        )
        print(
            f"python -m model.tree tree: {time.perf_counter() - start:.2f} s, {len(listing.stdout.splitlines())} lines"
        )


if __name__ == "__main__":
    main()
