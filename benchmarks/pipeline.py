"""Packed training tokens per second from a token cache: `python benchmarks/pipeline.py FILE [LENGTH] [BATCH_SIZE]`.

Reads FILE as one document per line (bytes as tokens), makes the cache if need be, and times the very iterator that
training uses, shuffled and packed with segment ids and positions, with threads and with two worker processes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.config import Bytes, DataConfig, Files
from data.pipeline import prepare, train_batches


def main(path: str, length: int = 256, batch_size: int = 64, seconds: float = 5.0) -> None:
    corpus = prepare(DataConfig(train=(Files(path=path, document="line"),), tokenizer=Bytes()))
    print(f"{corpus.train.num_documents:,} documents, {corpus.train.num_tokens:,} tokens")
    for num_workers in (0, 2):
        batches = train_batches(
            corpus.train,
            tokenizer=corpus.tokenizer,
            length=length,
            batch_size=batch_size,
            seed=0,
            attend_across_documents=False,
            num_workers=num_workers,
        )
        for _ in range(20):
            next(batches)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            next(batches)
            count += 1
        rate = count * batch_size * length / (time.perf_counter() - started)
        batches.close()
        print(f"{num_workers} worker processes: {rate / 1e6:.1f} million packed tokens/s")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
