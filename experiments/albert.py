"""ALBERT: A Lite BERT (Lan et al. 2020): one layer's parameters for all depths, factorized embeddings, sentence order.

    python -m train albert:tiny                      # WikiText-2 on a laptop
    python -m train albert:base --mesh.fsdp 8        # Wikipedia, needs the `hf` extra and a network

Sizes are the paper's table 1: embeddings of width 128. Pretraining (section 4.1): batch 4,096, 125,000 steps, learning
rate 0.00176, n-gram masks of up to 3 words, sentence-order prediction, a SentencePiece vocabulary of 30,000. The
optimizer was LAMB with 3,125 warm-up steps (released code); here it is AdamW at 1e-3.

| variant | parameters | published | obtained |
|---|---|---|---|
| base | 12M | average of five tasks 80.1 (v1) | not yet run |
| large | 18M | 82.4 | not yet run |
| xlarge | 60M | 85.5 | not yet run |
| xxlarge | 235M | 88.7 | not yet run |
"""

from data.config import DataConfig, HuggingFace, MaskedLM, SentencePiece
from experiments import bert
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Evaluation, Experiment, Linear

ALBERT = bert.BERT | dict(share_layers=True, embedding_dim=128, activation="gelu_tanh")


def base() -> Experiment:
    """12M parameters."""
    return Experiment(
        name="albert:base",
        num_steps=125_000,
        batch_size=4096,
        accumulation_steps=8,
        model=TransformerConfig(
            vocab_size=30_000, num_layers=12, embed_dim=768, num_heads=12, max_length=512, dtype="bfloat16", **ALBERT
        ),
        objective=MaskedLM(masking="ngram", sentence_pairs="sentence_order"),
        data=DataConfig(
            train=(HuggingFace(path="wikimedia/wikipedia", name="20231101.en"),),
            held_out_fraction=0.0005,
            tokenizer=SentencePiece(vocab_size=29_999),
            length=512,
        ),
        optimizer=AdamW(peak_learning_rate=1e-3, schedule=Linear(warmup_steps=3125), b2=0.999, weight_decay=0.01),
        evaluation=Evaluation(every=1000, batch_size=256, max_batches=100),
        checkpoint=Checkpointing(every=1000),
    )


def _size(name: str, **sizes: int) -> Experiment:
    small = base()
    return small.model_copy(update=dict(name=f"albert:{name}", model=small.model.model_copy(update=sizes)))


def large() -> Experiment:
    """18M parameters."""
    return _size("large", num_layers=24, embed_dim=1024, num_heads=16)


def xlarge() -> Experiment:
    """60M parameters."""
    return _size("xlarge", num_layers=24, embed_dim=2048, num_heads=16)


def xxlarge() -> Experiment:
    """235M parameters."""
    return _size("xxlarge", num_layers=12, embed_dim=4096, num_heads=64)


def tiny() -> Experiment:
    """The same architecture at a laptop's size, on WikiText-2."""
    small = bert.tiny()
    model = TransformerConfig(
        vocab_size=4100,
        num_layers=4,
        embed_dim=128,
        num_heads=4,
        max_length=128,
        **ALBERT | dict(embedding_dim=64, dropout_rate=0.0, attention_dropout_rate=0.0),
    )
    data = small.data.model_copy(update=dict(tokenizer=SentencePiece(vocab_size=4096), attend_across_documents=False))
    objective = MaskedLM(masking="ngram", sentence_pairs="sentence_order")
    return small.model_copy(update=dict(name="albert:tiny", model=model, data=data, objective=objective))
