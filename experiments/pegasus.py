"""PEGASUS: Pre-training with Extracted Gap-sentences (Zhang et al. 2020).

    python -m train pegasus:tiny                     # WikiText-2 on a laptop
    python -m train pegasus:large --mesh.fsdp 8      # C4, needs the `hf` extra and a network

Sizes are those of the released model. The paper's large model: batch 8,192, 500,000 steps, 30 % of the sentences chosen
by ROUGE-1 against the rest, inputs of 512 and targets of 256 tokens, Adafactor at 0.01 with an inverse square root,
dropout 0.1, a unigram vocabulary of 96,000. The released "mixed and stochastic" checkpoint is another: 1,500,000
steps, 15 to 45 % of the sentences, scores with 20 % noise: `--objective.min-rate 0.15 --objective.rate 0.45
--num-steps 1500000`.

| variant | parameters | published (C4) | obtained |
|---|---|---|---|
| large | 568M | ROUGE XSum 45.20/22.06/36.99, CNN/DM 43.90/21.20/40.76 | not yet run |
"""

from data.config import DataConfig, GapSentences, HuggingFace, SentencePiece
from experiments import t5
from model.config import TransformerConfig
from train.config import Adafactor, Checkpointing, Evaluation, Experiment, InverseSquareRoot

PEGASUS = dict(
    stack="encoder_decoder",
    positions="sinusoidal",
    scale_embeddings=True,
    activation="relu",
    head_bias=True,
    scale_residual_init=False,
    decoder_start_id=0,
)


def large() -> Experiment:
    """568M parameters."""
    return Experiment(
        name="pegasus:large",
        num_steps=500_000,
        batch_size=8192,
        accumulation_steps=64,
        model=TransformerConfig(
            vocab_size=96_103,
            num_layers=16,
            embed_dim=1024,
            num_heads=16,
            max_length=512,
            dropout_rate=0.1,
            attention_dropout_rate=0.1,
            activation_dropout_rate=0.1,
            dtype="bfloat16",
            remat="dots",
            **PEGASUS,
        ),
        objective=GapSentences(noise=0.0),
        data=DataConfig(
            train=(HuggingFace(path="allenai/c4", name="en"),),
            validation=(HuggingFace(path="allenai/c4", name="en", split="validation"),),
            tokenizer=SentencePiece(vocab_size=96_000),
            length=512,
            target_length=256,
        ),
        optimizer=Adafactor(peak_learning_rate=0.01, schedule=InverseSquareRoot(warmup_steps=10_000)),
        evaluation=Evaluation(every=1000, batch_size=256, max_batches=100),
        checkpoint=Checkpointing(every=1000),
    )


def tiny() -> Experiment:
    """The same architecture at a laptop's size, on WikiText-2."""
    small = t5.tiny()
    model = TransformerConfig(vocab_size=4100, num_layers=3, embed_dim=128, num_heads=4, max_length=128, **PEGASUS)
    data = small.data.model_copy(update=dict(tokenizer=SentencePiece(vocab_size=4096)))
    return small.model_copy(update=dict(name="pegasus:tiny", model=model, data=data, objective=GapSentences()))
