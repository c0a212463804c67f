"""Language Models are Unsupervised Multitask Learners (Radford et al. 2019): GPT-2.

    python -m train gpt2:tiny                        # WikiText-2 on a laptop
    python -m train gpt2:small --mesh.fsdp 8         # OpenWebText, needs the `hf` extra and a network

Sizes are the paper's Table 2 with the parameter counts of the released models (the paper's 117M, 345M, 762M and
1542M leave parts out). Optimizer, learning rate, dropout and number of steps were never published; they follow
nanoGPT's reproduction (config/train_gpt2.py: 600,000 steps of 491,520 tokens, learning rate 6e-4 → 6e-5 after
2,000 warm-up steps, b2 0.95, weight decay 0.1, clip 1, no dropout, OpenWebText validation loss about 2.85). The
paper's batch is 512 sequences of 1,024 tokens. The tokenizer is a byte-level BPE of the published size, 50,257, trained
on the run's own text (`tiny`: SentencePiece's BPE); GPT-2's own merges are used with `--data.tokenizer.kind pretrained
--data.tokenizer.path FOLDER`.

Initialization: 0.02, residual projections divided by sqrt(2 * layers) (paper, section 2.3), positions 0.01 (released
code). Windows are cut from one stream of documents, and attention crosses their borders, as in the reproductions.

`tiny` (seed 0): WikiText-2 validation word perplexity 782, test 701 (1.85 bits per byte), 8 minutes on two CPU cores.
Protocol: all tokens in windows of 128 without overlap; exp(total nats / words), the test file counting 245,569 words,
each line end being one.

| variant | parameters | published | obtained |
|---|---|---|---|
| small | 124,439,808 | WikiText-103 perplexity 37.50 (zero-shot) | not yet run |
| medium | 354,823,168 | 26.37 | not yet run |
| large | 774,030,080 | 22.05 | not yet run |
| xl | 1,557,611,200 | 17.48 | not yet run |
"""

from data.config import ByteBPE, DataConfig, Files, HuggingFace, SentencePiece
from experiments import dataset
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Cosine, Evaluation, Experiment

WIKITEXT2 = "language_modeling/wikitext2/"


def small() -> Experiment:
    """124M parameters."""
    return Experiment(
        name="gpt2:small",
        num_steps=600_000,
        batch_size=512,
        accumulation_steps=16,
        model=TransformerConfig(
            vocab_size=50_257,
            num_layers=12,
            embed_dim=768,
            num_heads=12,
            max_length=1024,
            positions="learned",
            dtype="bfloat16",
        ),
        data=DataConfig(
            train=(HuggingFace(path="Skylion007/openwebtext"),),
            held_out_fraction=0.0005,
            tokenizer=ByteBPE(vocab_size=50_257),
            length=1024,
            attend_across_documents=True,
        ),
        optimizer=AdamW(peak_learning_rate=6e-4, schedule=Cosine(warmup_steps=2000)),
        evaluation=Evaluation(every=1000, batch_size=32, max_batches=200),
        checkpoint=Checkpointing(every=1000),
    )


def _size(name: str, **sizes: int) -> Experiment:
    base = small()
    model = base.model.model_copy(update=sizes | {"remat": "dots"})
    return base.model_copy(update=dict(name=f"gpt2:{name}", model=model, accumulation_steps=32))


def medium() -> Experiment:
    """355M parameters."""
    return _size("medium", num_layers=24, embed_dim=1024, num_heads=16)


def large() -> Experiment:
    """774M parameters."""
    return _size("large", num_layers=36, embed_dim=1280, num_heads=20)


def xl() -> Experiment:
    """1.6B parameters."""
    return _size("xl", num_layers=48, embed_dim=1600, num_heads=25)


def tiny() -> Experiment:
    """The same architecture at a laptop's size, on WikiText-2."""
    return Experiment(
        name="gpt2:tiny",
        num_steps=800,
        batch_size=16,
        model=TransformerConfig(
            vocab_size=4096,
            num_layers=4,
            embed_dim=192,
            num_heads=4,
            max_length=128,
            positions="learned",
            dropout_rate=0.1,
        ),
        data=DataConfig(
            train=(Files(path=dataset(WIKITEXT2 + "train.txt.gz")),),
            validation=(Files(path=dataset(WIKITEXT2 + "valid.txt")),),
            tokenizer=SentencePiece(algorithm="bpe", vocab_size=4096),
            length=128,
            attend_across_documents=True,
        ),
        optimizer=AdamW(peak_learning_rate=3e-3, schedule=Cosine(warmup_steps=100)),
        checkpoint=Checkpointing(every=400),
        evaluation=Evaluation(every=400, batch_size=64, prompts=(" = ", " The game "), sample_tokens=120),
    )
