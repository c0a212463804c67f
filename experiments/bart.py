"""BART: Denoising Sequence-to-Sequence Pre-training (Lewis et al. 2020).

    python -m train bart:tiny                        # WikiText-2 on a laptop
    python -m train bart:base --mesh.fsdp 8          # OpenWebText, needs the `hf` extra and a network

Text infilling (30 % of the tokens, spans of Poisson length 3, each one mask) and shuffled sentences; sizes, batch 8,000
and 500,000 steps are the paper's (section 5.1), dropout 0.1. Optimizer and learning rate were not published; they are
RoBERTa's, from the same authors. Dropout was switched off for the last tenth of the steps, which is not done here.

| variant | parameters | published | obtained |
|---|---|---|---|
| base | 140M | – | not yet run |
| large | 400M | CNN/DM ROUGE 44.16/21.28/40.90 | not yet run |
"""

from data.config import ByteBPE, DataConfig, HuggingFace, SentencePiece, TextInfilling
from experiments import t5
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Evaluation, Experiment, Linear

BART = dict(
    stack="encoder_decoder",
    positions="learned",
    position_offset=2,
    position_init_stddev=0.02,
    embedding_norm=True,
    norm_placement="post",
    activation="gelu",
    head_bias=True,
    scale_residual_init=False,
)


def base() -> Experiment:
    """140M parameters."""
    return Experiment(
        name="bart:base",
        num_steps=500_000,
        batch_size=8000,
        accumulation_steps=25,
        model=TransformerConfig(
            vocab_size=50_265,
            num_layers=6,
            embed_dim=768,
            num_heads=12,
            max_length=1024,
            dropout_rate=0.1,
            attention_dropout_rate=0.1,
            dtype="bfloat16",
            **BART,
        ),
        objective=TextInfilling(),
        data=DataConfig(
            train=(HuggingFace(path="Skylion007/openwebtext"),),
            held_out_fraction=0.0005,
            tokenizer=ByteBPE(vocab_size=50_264),
            length=512,
            attend_across_documents=True,
        ),
        optimizer=AdamW(
            peak_learning_rate=6e-4, schedule=Linear(warmup_steps=24_000), b2=0.98, epsilon=1e-6, weight_decay=0.01
        ),
        evaluation=Evaluation(every=1000, batch_size=256, max_batches=100),
        checkpoint=Checkpointing(every=1000),
    )


def large() -> Experiment:
    """400M parameters."""
    small = base()
    model = small.model.model_copy(update=dict(num_layers=12, embed_dim=1024, num_heads=16, remat="dots"))
    return small.model_copy(update=dict(name="bart:large", model=model, accumulation_steps=50))


def tiny() -> Experiment:
    """The same architecture at a laptop's size, on WikiText-2."""
    small = t5.tiny()
    model = TransformerConfig(vocab_size=4100, num_layers=3, embed_dim=128, num_heads=4, max_length=128, **BART)
    data = small.data.model_copy(update=dict(tokenizer=SentencePiece(vocab_size=4096)))
    changes = dict(name="bart:tiny", model=model, data=data, objective=TextInfilling())
    return small.model_copy(update=changes)
