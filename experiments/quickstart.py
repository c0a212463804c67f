"""A first run that needs no download: a small decoder learns the prose of Python's own documentation.

    make quickstart            # or: python -m train quickstart

The text is the language reference and the docstrings of the standard library, read from the running
interpreter. The run trains a SentencePiece tokenizer, pretrains, evaluates on held-out documents, prints
samples and leaves a report: at most five minutes on two CPU cores.
"""

from data.config import DataConfig, PythonDocs, SentencePiece
from model.config import TransformerConfig
from train.config import Checkpointing, Evaluation, Experiment, Linear, Muon


def small() -> Experiment:
    """Two million parameters, most of them word pieces."""
    return Experiment(
        name="quickstart",
        num_steps=450,
        batch_size=16,
        model=TransformerConfig(
            vocab_size=4096,
            num_layers=3,
            embed_dim=192,
            num_heads=4,
            max_length=128,
            norm="rms",
            activation="relu",
            use_bias=False,
            layer_loop="unroll",
        ),
        data=DataConfig(train=(PythonDocs(),), tokenizer=SentencePiece(vocab_size=4096), length=128),
        optimizer=Muon(peak_learning_rate=5e-3, schedule=Linear(warmup_steps=30)),
        checkpoint=Checkpointing(every=150),
        evaluation=Evaluation(
            every=150,
            batch_size=32,
            prompts=("The", "Return a list of", "If the argument is"),
            sample_tokens=120,
            temperature=0.6,
        ),
    )
