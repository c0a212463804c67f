"""A run directory as training leaves it behind, but never trained: bytes, a tiny model, one checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import task_runs

TEXT = "The quick brown fox\njumps over the lazy dog.\n\n" * 40


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A run whose validation loss is on record; its data are one file of 40 equal paragraphs."""
    from data.tokenizer import ByteTokenizer
    from model.transformer import Decoder
    from train import sharding
    from train.checkpoint import Checkpoints
    from train.config import Experiment, Mesh
    from train.step import plan_state

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text.txt").write_text(TEXT, "utf-8")
    source = {"kind": "files", "path": str(folder / "text.txt")}
    run = folder / "run"
    experiment = Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(run),
            "num_steps": 40,
            "batch_size": 3,
            "model": {
                "vocab_size": 264, "num_layers": 2, "embed_dim": 16, "num_heads": 2, "max_length": 32,
                "init_stddev": 0.2,
            },
            "data": {
                "train": [source], "validation": [source], "length": 32, "tokenizer": {"kind": "bytes"},
                "cache_dir": str(folder / "cache"),
            },
        }
    )  # fmt: skip
    run.mkdir()
    (run / "config.json").write_text(experiment.model_dump_json(indent=2), "utf-8")
    import jax

    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    with sharding.use(mesh, experiment.mesh.rules):
        state = plan_state(Decoder(experiment.model), experiment, mesh).init_state()
    checkpoints = Checkpoints(run / "checkpoints", keep_last=1, keep_best=0, verify=True)

    def write_extras(checkpoint: Path) -> None:
        ByteTokenizer().save(checkpoint / "tokenizer")

    checkpoints.save(state, data={}, validation={"loss": 5.5}, write_extras=write_extras)
    checkpoints.wait()
    lines = [
        {"step": 10, "loss": 5.6, "grad_norm": 1.5, "learning_rate": 1e-3, "elapsed_seconds": 1.0},
        {"step": 20, "loss": float("nan"), "grad_norm": 1.0, "learning_rate": 2e-3, "elapsed_seconds": 3.0,
         "tokens_per_second": 1000.0},
        {"step": 20, "validation": {"loss": 5.5, "perplexity": 244.7, "bits_per_byte": 7.9}},
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 30, "lo', "utf-8")
    return run


@pytest.fixture(scope="session", params=["decoder", "encoder_decoder"])
def source_run(request, tmp_path_factory):
    """A run of texts from texts, its examples, and number of an example → what training reads before the target.

    The objective has a prefix, and the encoder–decoder a tokenizer whose official template stands around a text.
    """
    import numpy as np

    from data import tokenizer as tokenizers
    from data.config import WordPiece
    from data.task_batches import TaskBatchMaker
    from eval.tasks import examples_of
    from train.run import load_run

    model = {"stack": "decoder"} if request.param == "decoder" else {"decoder_start_id": 3, "vocab_size": 300}
    folder = tmp_path_factory.mktemp(f"source_{request.param}")
    run = load_run(task_runs.write_run(task_runs.experiment(folder, "text_to_text", {"prefix": "Do: "}, model)))
    if request.param == "encoder_decoder":
        run = replace(run, tokenizer=tokenizers.train(WordPiece(vocab_size=300), iter(["Do: it! zzz one bbb"])))
    examples = examples_of(run, "test", run.config.data, lambda line: None)
    maker = TaskBatchMaker(examples, True, decoder_start_id=run.config.model.decoder_start_id)

    def trained(number):
        batch = {name: array[0] for name, array in maker.batch(np.array([number]), np.zeros(1, int)).items()}
        if request.param == "decoder":
            return None, batch["inputs"][: batch["weights"].argmax() + 1].tolist()
        num_before = int(batch["decoder_weights"].sum()) - len(examples.row(number)["targets"]) + 1
        source = batch["encoder_inputs"][batch["encoder_segment_ids"] > 0]
        return source.tolist(), batch["decoder_inputs"][:num_before].tolist()

    return run, examples, trained
