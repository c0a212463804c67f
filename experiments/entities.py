"""Entities: CoNLL-2003 in English, MSRA and Weibo in Chinese, one tag for each word or character.

    python -m train entities:conll2003               # fine-tunes runs/minilm, see glue.py for its import
    python -m train entities:conll2003_scratch
    python -m train entities:msra

Scores are entity F1 as conlleval counts: type, first and last word all right. BERT's paper (Devlin et al. 2019,
table 7) reads the document around each sentence and keeps the case; here each sentence stands alone, and MiniLM
lowers it. A few tags of CoNLL-2003 and Weibo break their own scheme; they are read as conlleval reads them.

Obtained, on 2 CPU cores: `conll2003`, test, seed 0: F1 85.59 (95 % interval 84.6 to 86.6), precision 84.6, recall 86.6,
in 13 minutes, where BERT base, with case and context, has 92.4. From scratch, seeds 0, 1, 2, on one core:
`conll2003_scratch`, test: F1 65.0 ± 2.7 (62.0, 66.5, 66.6) in 6 minutes a seed, where looking up the entities of the
training data has 56.7; `weibo`, test: F1 22.4 ± 0.7 (22.1, 21.9, 23.3) in 9 minutes a seed, far below the 43.7 of
looking up: 1,350 posts are too few to learn the characters from. `msra`, test, seed 0: F1 47.2 (45.7 to 48.8),
precision 44.7, recall 49.9, in 15 minutes, where looking up has 24.6; on held-out sentences of the training part, whose
neighbours are trained on, 69.0.
"""

from data.config import Characters, DataConfig, Tagging, WordPiece
from data.task_config import Augmentation, Records, num_outputs
from experiments import dataset, fine_tune
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Evaluation, Experiment, Linear


def conll2003() -> Experiment:
    """English news, four types (Tjong Kim Sang & De Meulder 2003); fine-tuned for two epochs."""
    return fine_tune(
        "entities:conll2003",
        _conll_objective(),
        "tokens",
        dict(**_conll_splits(), length=128),
        num_steps=878,
        batch_size=32,
        peak_learning_rate=3e-4,
        warmup_steps=88,
        evaluation=Evaluation(every=439),
    )


def conll2003_scratch() -> Experiment:
    """The same without pretraining: a small encoder over WordPiece of its own, which keeps the case."""
    return _scratch(
        "conll2003_scratch",
        _conll_objective(),
        data=DataConfig(
            **_conll_splits(),
            tokenizer=WordPiece(vocab_size=8000, lowercase=False),
            augmentation=Augmentation(token_dropout=0.15),
            length=128,
        ),
        vocab_size=8000,
        num_steps=2200,
    )


def msra() -> Experiment:
    """Chinese news, three types (SIGHAN 2006), 8,000 sentences of its training part; from scratch."""
    files = {"train": "msra_train_subset.txt", "test": "msra_test_bio.txt"}
    return _chinese("msra", ("PER", "LOC", "ORG"), "ner/msra_ner_zh", files=files, num_steps=6000)


def weibo() -> Experiment:
    """Chinese microblogs (Peng & Dredze 2015), names and nouns of four types, 1,350 posts; from scratch."""
    kinds = tuple(f"{kind}.{form}" for kind in ("PER", "ORG", "LOC", "GPE") for form in ("NAM", "NOM"))
    files = {"train": "train", "validation": "dev", "test": "test"}
    files = {split: f"weiboNER_2nd_conll.{file}" for split, file in files.items()}
    return _chinese("weibo", kinds, "ner/weibo_ner_zh", files=files, num_steps=1500, replace={"tokens": {r"\d$": ""}})


def _conll_objective() -> Tagging:
    return Tagging(types=("PER", "ORG", "LOC", "MISC"), scheme="conlleval")


def _conll_splits() -> dict[str, tuple[Records, ...]]:
    files = {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"}
    columns = ("tokens", "part_of_speech", "chunk", "tags")
    return {
        split: (Records(path=dataset(f"ner/conll2003_en/{file}"), format="conll", columns=columns),)
        for split, file in files.items()
    }


def _chinese(
    name: str, kinds: tuple[str, ...], folder: str, *, files: dict[str, str], num_steps: int, **how
) -> Experiment:
    sources = {
        split: (Records(path=dataset(f"{folder}/{file}"), format="conll", columns=("tokens", "tags"), **how),)
        for split, file in files.items()
    }
    return _scratch(
        name,
        Tagging(types=kinds, scheme="conlleval"),
        data=DataConfig(**sources, tokenizer=Characters(), augmentation=Augmentation(token_dropout=0.15), length=128),
        vocab_size=5000,
        num_steps=num_steps,
    )


def _scratch(name: str, objective: Tagging, *, data: DataConfig, vocab_size: int, num_steps: int) -> Experiment:
    return Experiment(
        name=f"entities:{name}",
        num_steps=num_steps,
        batch_size=32,
        model=TransformerConfig(
            stack="encoder",
            vocab_size=vocab_size,
            num_layers=3,
            embed_dim=128,
            num_heads=4,
            mlp_dim=256,
            max_length=data.length,
            positions="t5_relative",
            heads=("tokens",),
            num_labels=num_outputs(objective),
            dropout_rate=0.3,
        ),
        objective=objective,
        data=data,
        optimizer=AdamW(peak_learning_rate=1e-3, schedule=Linear(warmup_steps=100), b2=0.999, weight_decay=0.01),
        evaluation=Evaluation(every=500),
        checkpoint=Checkpointing(every=num_steps),
        log_every=50,
    )
