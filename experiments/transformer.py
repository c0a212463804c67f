"""Attention Is All You Need (Vaswani et al. 2017).

    python -m train transformer:multi30k             # English to German, from scratch, on a laptop
    python -m train transformer:base --mesh.data 8   # WMT 2014 English to German, needs the `hf` extra and a network

Architecture (section 3), the same in all variants: norms after each sublayer, ReLU, sinusoidal positions, one matrix
for source, target and output, embeddings times the square root of their width, label smoothing 0.1, Adam with 0.9, 0.98
and 1e-9. Weights start from a normal distribution of variance 1 / width, so that scaled embeddings have variance 1.
`base` and `big` are table 3's, with its learning rate; a batch there has 25,000 source tokens, here 1,024 pairs of
about 25. The paper averages the last 5 (base) or 20 checkpoints, ten minutes apart, and searches with a beam of 4 and a
length penalty of 0.6. `multi30k` trains so briefly that its learning rate falls to 0 instead, on a line.

Obtained: `multi30k`, test 2016, seed 0, mean of the last 5 checkpoints, beam 5: sacreBLEU 34.45 (95 % interval 32.98 to
36.01; nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0), chrF 57.5; validation 34.25; 61 minutes on 2 CPU
cores, 12.7 epochs. Published results of small Transformers trained to the end are 38 to 41. `base` and `big`: not run.
"""

from data.config import DataConfig, HuggingFace, SentencePiece, TextToText
from data.task_config import Records
from experiments import dataset
from model.config import TransformerConfig
from train.config import (
    Adam,
    Checkpointing,
    Decoding,
    Evaluation,
    Experiment,
    InverseSquareRoot,
    Linear,
    Loss,
    Schedule,
)

ARCHITECTURE = dict(
    stack="encoder_decoder",
    positions="sinusoidal",
    norm_placement="post",
    norm_epsilon=1e-6,
    activation="relu",
    scale_embeddings=True,
    scale_residual_init=False,
)


def base() -> Experiment:
    """65M parameters, WMT 2014 English to German."""
    languages = {"source": "translation.en", "target": "translation.de"}
    splits = {
        split: (HuggingFace(path="wmt/wmt14", name="de-en", split=split, fields=languages),)
        for split in ("train", "validation", "test")
    }
    return Experiment(
        name="transformer:base",
        num_steps=100_000,
        batch_size=1024,
        model=TransformerConfig(
            vocab_size=37_000,
            num_layers=6,
            embed_dim=512,
            num_heads=8,
            max_length=256,
            dropout_rate=0.1,
            init_stddev=512**-0.5,
            dtype="bfloat16",
            **ARCHITECTURE,
        ),
        objective=TextToText(scores=("bleu", "compound_split_bleu", "chrf")),
        data=DataConfig(**splits, tokenizer=SentencePiece(algorithm="bpe", vocab_size=37_000), length=256),
        optimizer=_adam(512**-0.5 * 4000**-0.5, InverseSquareRoot(warmup_steps=4000)),
        loss=Loss(label_smoothing=0.1),
        evaluation=Evaluation(every=2500, average=5, decoding=Decoding(beam_size=4, length_penalty=0.6)),
        checkpoint=Checkpointing(every=1500, keep_last=5),
    )


def big() -> Experiment:
    """213M parameters, the same data."""
    small = base()
    sizes = dict(embed_dim=1024, num_heads=16, dropout_rate=0.3, init_stddev=1024**-0.5)
    changes = dict(
        name="transformer:big",
        num_steps=300_000,
        model=small.model.model_copy(update=sizes),
        optimizer=_adam(1024**-0.5 * 4000**-0.5, InverseSquareRoot(warmup_steps=4000)),
        evaluation=small.evaluation.model_copy(update=dict(average=20)),
        checkpoint=Checkpointing(every=1500, keep_last=20),
    )
    return small.model_copy(update=changes)


def multi30k() -> Experiment:
    """29,000 captions of pictures, English to German (Elliott et al. 2016), test 2016."""
    return Experiment(
        name="transformer:multi30k",
        num_steps=2880,
        batch_size=128,
        model=TransformerConfig(
            vocab_size=6000,
            num_layers=3,
            embed_dim=256,
            num_heads=4,
            mlp_dim=512,
            max_length=128,
            dropout_rate=0.2,
            init_stddev=256**-0.5,
            **ARCHITECTURE,
        ),
        objective=TextToText(scores=("bleu", "chrf")),
        data=DataConfig(
            train=(_captions("train"),),
            validation=(_captions("val"),),
            test=(_captions("test_2016_flickr"),),
            tokenizer=SentencePiece(algorithm="bpe", vocab_size=6000),
            length=96,
            target_length=96,
        ),
        optimizer=_adam(1.5e-3, Linear(warmup_steps=400)),
        loss=Loss(label_smoothing=0.1),
        evaluation=Evaluation(every=480, average=5, decoding=Decoding(beam_size=5, length_penalty=0.6)),
        checkpoint=Checkpointing(every=120, keep_last=5),
        log_every=20,
    )


def _captions(split: str) -> Records:
    path = dataset(f"translation/multi30k/raw/{split}")
    return Records(
        path=f"{path}.en.gz",
        format="lines",
        beside={"de": f"{split}.de.gz"},
        fields={"source": "text", "target": "de"},
    )


def _adam(rate: float, schedule: Schedule) -> Adam:
    return Adam(peak_learning_rate=rate, schedule=schedule, b2=0.98, epsilon=1e-9, clip_norm=None)
