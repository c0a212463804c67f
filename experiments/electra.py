"""ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators (Clark et al. 2020).

    python -m train electra:tiny                     # WikiText-2 on a laptop
    python -m train electra:small --mesh.fsdp 8      # OpenWebText, needs the `hf` extra and a network

Sizes and schedule are those of the released code (configure_pretraining.py) and table 6: small reads 128 tokens in
batches of 128 for 1,000,000 steps at 5e-4, base 512 tokens in batches of 256 for 766,000 steps at 2e-4; 10,000
warm-up steps, linear decay, weight decay 0.01, 15 % masked, discriminator weight 50, generator of a quarter (small)
or a third (base) of the width. The vocabulary is trained on the run's own text.

| variant | parameters | published | obtained |
|---|---|---|---|
| small | 14M | GLUE dev on OpenWebText: SST-2 88.3, MNLI 78.9 | not yet run |
| base | 110M | SST-2 95.1, MNLI 88.8 | not yet run |
"""

from data.config import DataConfig, HuggingFace, ReplacedTokens, WordPiece
from experiments import bert
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Evaluation, Experiment, Linear

ELECTRA = bert.BERT | dict(heads=("detection",), pooler="none")


def small() -> Experiment:
    """14M parameters, and a generator."""
    return Experiment(
        name="electra:small",
        num_steps=1_000_000,
        batch_size=128,
        model=TransformerConfig(
            vocab_size=30_522,
            num_layers=12,
            embed_dim=256,
            embedding_dim=128,
            mlp_dim=1024,
            num_heads=4,
            max_length=512,
            dtype="bfloat16",
            **ELECTRA,
        ),
        objective=ReplacedTokens(),
        data=DataConfig(
            train=(HuggingFace(path="Skylion007/openwebtext"),),
            held_out_fraction=0.0005,
            tokenizer=WordPiece(vocab_size=30_522),
            length=128,
            attend_across_documents=True,
        ),
        optimizer=_adam(5e-4, 10_000),
        evaluation=Evaluation(every=5000, batch_size=256, max_batches=100),
        checkpoint=Checkpointing(every=5000),
    )


def base() -> Experiment:
    """110M parameters, and a generator."""
    other = small()
    changes = dict(
        name="electra:base",
        num_steps=766_000,
        batch_size=256,
        model=other.model.model_copy(update=dict(embed_dim=768, embedding_dim=None, mlp_dim=3072, num_heads=12)),
        objective=ReplacedTokens(generator_fraction=1 / 3),
        data=other.data.model_copy(update=dict(length=512)),
        optimizer=_adam(2e-4, 10_000),
    )
    return other.model_copy(update=changes)


def tiny() -> Experiment:
    """The same pair at a laptop's size, on WikiText-2."""
    other = bert.tiny()
    model = other.model.model_copy(update=dict(heads=("detection",), head_transform=False, head_bias=False))
    objective = ReplacedTokens(generator_fraction=0.25)
    return other.model_copy(update=dict(name="electra:tiny", model=model, objective=objective))


def _adam(rate: float, warmup_steps: int) -> AdamW:
    schedule = Linear(warmup_steps=warmup_steps)
    return AdamW(peak_learning_rate=rate, schedule=schedule, b2=0.999, epsilon=1e-6, weight_decay=0.01)
