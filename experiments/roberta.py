"""RoBERTa: A Robustly Optimized BERT Pretraining Approach (Liu et al. 2019).

    python -m train roberta:base --mesh.fsdp 8       # needs the `hf` extra and a network

BERT's sizes without next-sentence prediction, with dynamic masks, full sentences of 512 tokens across documents and a
byte-level BPE of 50,265 (section 3 and 4). Batch 8,192 for 500,000 steps, Adam 0.9/0.98, epsilon 1e-6, weight decay
0.01, no clipping; peak learning rate 6e-4 after 24,000 warm-up steps (base), 4e-4 after 30,000 (large). The paper's
160 GB of text are not all public; OpenWebText is one of its five parts. The vocabulary is trained on the run's text.

| variant | parameters | published | obtained |
|---|---|---|---|
| base | 125M | GLUE dev: MNLI 87.6, SST-2 94.8 | not yet run |
| large | 355M | MNLI 90.2, SST-2 96.4 | not yet run |
"""

from data.config import ByteBPE, DataConfig, HuggingFace, MaskedLM
from experiments.bert import BERT
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Evaluation, Experiment, Linear

ROBERTA = BERT | dict(heads=("lm",), pooler="none", num_sentence_types=1, norm_epsilon=1e-5, position_offset=2)


def base() -> Experiment:
    """125M parameters."""
    return Experiment(
        name="roberta:base",
        num_steps=500_000,
        batch_size=8192,
        accumulation_steps=16,
        model=TransformerConfig(
            vocab_size=50_265, num_layers=12, embed_dim=768, num_heads=12, max_length=512, dtype="bfloat16", **ROBERTA
        ),
        objective=MaskedLM(),
        data=DataConfig(
            train=(HuggingFace(path="Skylion007/openwebtext"),),
            held_out_fraction=0.0005,
            tokenizer=ByteBPE(vocab_size=50_264),
            length=512,
            attend_across_documents=True,
        ),
        optimizer=_adam(6e-4, 24_000),
        evaluation=Evaluation(every=1000, batch_size=256, max_batches=100),
        checkpoint=Checkpointing(every=1000),
    )


def large() -> Experiment:
    """355M parameters."""
    small = base()
    sizes = dict(num_layers=24, embed_dim=1024, num_heads=16, remat="dots")
    changes = dict(name="roberta:large", model=small.model.model_copy(update=sizes), optimizer=_adam(4e-4, 30_000))
    return small.model_copy(update=changes | dict(accumulation_steps=64))


def _adam(rate: float, warmup_steps: int) -> AdamW:
    schedule = Linear(warmup_steps=warmup_steps)
    return AdamW(peak_learning_rate=rate, schedule=schedule, b2=0.98, epsilon=1e-6, weight_decay=0.01, clip_norm=None)
