"""Runs of tasks as training leaves them behind, but never trained: bytes, a tiny model, records made here."""

import json
from pathlib import Path

MODEL = {"vocab_size": 264, "num_layers": 1, "embed_dim": 16, "num_heads": 2, "max_length": 48, "init_stddev": 0.3}
ENCODER = {"stack": "encoder", "positions": "learned", "num_sentence_types": 2}

# kind → objective, model, data, records
TASKS = {
    "classification": (
        {"labels": ["bad", "good"]},
        ENCODER | {"heads": ["sequence"], "num_labels": 2},
        {},
        [{"text": f"It is {'very ' * (i % 4)}{word}.", "label": word} for i in range(7) for word in ("good", "bad")],
    ),
    "regression": (
        {"minimum": 0, "maximum": 5},
        ENCODER | {"heads": ["sequence"], "num_labels": 1},
        {},
        [{"text": "a" * (i + 1), "second_text": "a" * 3, "label": i / 2} for i in range(9)],
    ),
    "tagging": (
        {"types": ["PER", "LOC"]},
        ENCODER | {"heads": ["tokens"], "num_labels": 5},
        {"length": 20},
        [
            {"tokens": ["Ada", "met", "Bo"] * (i % 3 + 1), "tags": ["B-PER", "O", "B-LOC"] * (i % 3 + 1)}
            for i in range(6)
        ],
    ),
    "span_answering": (
        {"stride": 8, "max_question_length": 6},
        ENCODER | {"heads": ["span"]},
        {},
        [
            {
                "id": f"q{i}",
                "context": "x " * i + "The river is the Rhine, and it is long.",
                "question": "Which?",
                "answers": [{"text": "Rhine", "answer_start": 2 * i + 17}],
            }
            for i in range(8)
        ],
    ),
    "text_to_text": (
        {"scores": ["bleu", "accuracy"], "words": {"1": "one"}},
        {"stack": "encoder_decoder", "positions": "t5_relative"},
        {"target_length": 8},
        [{"source": "z" * (i + 1), "target": "1" if i == 0 else "b" * (i % 5 + 1)} for i in range(7)],
    ),
    "dialogue": (
        {},
        {"stack": "decoder"},
        {},
        [{"turns": ["Hi", "Hello you", "And?", f"No {i}."]} for i in range(5)],
    ),
}


def experiment(folder: Path, kind: str, objective: dict | None = None, model: dict | None = None, **data):
    """A tiny experiment on the records above, which are its training, validation and test data."""
    from train.config import Experiment

    task, sizes, options, records = TASKS[kind]
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    source = {"kind": "records", "path": str(path)}
    return Experiment.model_validate(
        {
            "name": f"tiny-{kind}",
            "run_dir": str(folder / kind),
            "num_steps": 2,
            "batch_size": 4,
            "objective": {"kind": kind} | task | (objective or {}),
            "model": MODEL | sizes | (model or {}),
            "data": {
                "train": [source], "validation": [source], "test": [source], "tokenizer": {"kind": "bytes"},
                "length": 32, "cache_dir": str(folder / "cache"),
            } | options | data,
            "evaluation": {"sample_tokens": 3},
        }
    )  # fmt: skip


def write_run(experiment) -> Path:
    """A run directory with one checkpoint, of step 0."""
    import jax

    from data.objectives import objective_tokenizer
    from data.tokenizer import ByteTokenizer
    from train import sharding
    from train.checkpoint import Checkpoints
    from train.config import Mesh
    from train.objective import make_model
    from train.step import plan_state

    run = Path(experiment.directory)
    run.mkdir(parents=True)
    (run / "config.json").write_text(experiment.model_dump_json(indent=2), "utf-8")
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    with sharding.use(mesh, experiment.mesh.rules):
        state = plan_state(make_model(experiment), experiment, mesh).init_state()
    tokenizer = objective_tokenizer(ByteTokenizer(), experiment.objective)
    checkpoints = Checkpoints(run / "checkpoints", keep_last=1, keep_best=0, verify=True)
    checkpoints.save(state, data={}, validation=None, write_extras=lambda folder: tokenizer.save(folder / "tokenizer"))
    checkpoints.wait()
    return run
