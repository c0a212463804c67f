"""SQuAD (Rajpurkar et al. 2016): the part of a paragraph that answers a question.

    python -m train squad:subset                     # fine-tunes runs/minilm, see glue.py for its import

As BERT does (Devlin et al. 2019, section 4.2): question and context in one row, two linear layers for the first and the
last token, long contexts in overlapping windows, answers of at most 30 tokens.

Obtained: `subset`, its 700 dev questions, seed 0, MiniLM-L6: exact match 48.7 (95 % interval 45.0 to 52.0), F1 61.3
(58.2 to 64.4), by the definitions of the official script, in 50 minutes on one CPU core; the sentence with most words
of the question has F1 16.6. BERT base has 80.8 and 88.5 on all of dev, from all of train. `full`: not run.
"""

from data.config import HuggingFace, SpanAnswering
from data.task_config import Records
from experiments import dataset, fine_tune
from train.config import Experiment


def subset() -> Experiment:
    """3,939 questions of 17 articles, scored on 700 questions of 3 others; two epochs."""
    return _experiment(
        "subset",
        train=(Records(path=dataset("qa/squad_v1.1_subset/squad_train_subset.json"), format="squad"),),
        validation=(Records(path=dataset("qa/squad_v1.1_subset/squad_dev_subset.json"), format="squad"),),
        num_steps=500,
        rate=2e-4,
    )


def full() -> Experiment:
    """All 87,599 questions, scored on the 10,570 of dev; two epochs; needs the `hf` extra and a network."""
    return _experiment(
        "full",
        train=(HuggingFace(path="rajpurkar/squad", split="train"),),
        validation=(HuggingFace(path="rajpurkar/squad", split="validation"),),
        num_steps=11_000,
        rate=5e-5,
    )


def _experiment(name: str, *, train: tuple, validation: tuple, num_steps: int, rate: float) -> Experiment:
    return fine_tune(
        f"squad:{name}",
        SpanAnswering(),
        "span",
        dict(train=train, validation=validation, length=256),
        num_steps=num_steps,
        batch_size=16,
        peak_learning_rate=rate,
        log_every=20,
    )
