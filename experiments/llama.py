"""LLaMA (Touvron et al. 2023) and its successors: rotary positions, RMSNorm, SwiGLU, grouped-query attention.

    python -m train llama:tiny
    python -m train llama:1b --mesh.fsdp 8           # needs the `hf` extra and a network

`1b` has the shape of Llama 3.2 1B (16 layers, 2048 wide, 8192 feed-forward, 32 query and 8 key/value heads of 64,
vocabulary 128,256, rotary base 500,000, tied embeddings: 1,235,814,400 parameters) at a context of 8,192; `1b_128k`
goes on from it at 131,072 with the released scaling of rotary frequencies. Data and schedule were not published; the
schedule is that of Llama 2 (Touvron et al. 2023b, section 2.2: AdamW 0.9/0.95, epsilon 1e-5, weight decay 0.1,
clip 1, 2,000 warm-up steps, cosine to a tenth, 4M tokens a step). Not yet run.
"""

from data.config import DataConfig, HuggingFace, PythonDocs, SentencePiece
from model.config import Llama3Scaling, TransformerConfig
from train.config import AdamW, Checkpointing, Cosine, Evaluation, Experiment, Mesh

LLAMA = dict(norm="rms", activation="swiglu", positions="rotary", use_bias=False, scale_residual_init=False)


def _1b() -> Experiment:
    """1.2B parameters."""
    return Experiment(
        name="llama:1b",
        num_steps=500_000,
        batch_size=512,
        accumulation_steps=8,
        model=TransformerConfig(
            vocab_size=128_256,
            num_layers=16,
            embed_dim=2048,
            mlp_dim=8192,
            num_heads=32,
            num_kv_heads=8,
            max_length=8192,
            rotary_base=500_000.0,
            dtype="bfloat16",
            remat="full",
            **LLAMA,
        ),
        data=DataConfig(
            train=(HuggingFace(path="HuggingFaceFW/fineweb-edu", name="sample-10BT"),),
            held_out_fraction=0.0005,
            tokenizer=SentencePiece(algorithm="bpe", vocab_size=128_256),
            length=8192,
        ),
        optimizer=AdamW(peak_learning_rate=3e-4, epsilon=1e-5, schedule=Cosine(warmup_steps=2000)),
        mesh=Mesh(fsdp=8),
        evaluation=Evaluation(every=1000, batch_size=64, max_batches=50),
        checkpoint=Checkpointing(every=1000),
    )


def _1b_128k() -> Experiment:
    """The same at a context of 131,072."""
    short = _1b()
    scaling = Llama3Scaling(factor=32.0, original_length=8192)
    changes = dict(
        name="llama:1b_128k",
        num_steps=10_000,
        batch_size=32,
        accumulation_steps=4,
        init_from=short.directory,
        model=short.model.model_copy(update=dict(max_length=131_072, rotary_scaling=scaling)),
        data=short.data.model_copy(update=dict(length=131_072)),
        optimizer=AdamW(peak_learning_rate=3e-5, epsilon=1e-5, schedule=Cosine(warmup_steps=100)),
        evaluation=Evaluation(every=1000, batch_size=8, max_batches=50),
    )
    return short.model_copy(update=changes)


def tiny() -> Experiment:
    """The same mechanisms at a laptop's size, on Python's documentation."""
    return Experiment(
        name="llama:tiny",
        num_steps=600,
        batch_size=16,
        model=TransformerConfig(
            vocab_size=2048,
            num_layers=4,
            embed_dim=192,
            mlp_dim=512,
            num_heads=6,
            num_kv_heads=2,
            max_length=128,
            **LLAMA,
        ),
        data=DataConfig(train=(PythonDocs(),), tokenizer=SentencePiece(vocab_size=2048), length=128),
        optimizer=AdamW(peak_learning_rate=3e-3, schedule=Cosine(warmup_steps=60)),
        evaluation=Evaluation(every=200, batch_size=64, prompts=("The ", "Return "), sample_tokens=120),
    )
