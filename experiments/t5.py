"""T5: Exploring the Limits of Transfer Learning (Raffel et al. 2020), versions 1.0 and 1.1.

    python -m train t5:tiny                          # WikiText-2 on a laptop
    python -m train t5:base --mesh.fsdp 8            # C4, needs the `hf` extra and a network

Sizes are those of the released models; T5 1.1 has a gated GELU, an output layer of its own and no dropout in
pretraining. The baseline (section 3.1): 128 sequences of 512 tokens, 2^19 steps, 15 % of the tokens in spans of 3 on
average (targets of 114), Adafactor, learning rate 1/sqrt(max(step, 10^4)), dropout 0.1, SentencePiece of 32,000 and
100 sentinels, rounded to 32,128; z-loss 1e-4 is in the released code. Its inverse square root schedule is here a
constant for the first 10,000 steps, as there. The vocabulary is trained on the run's own text.

Rows of table 2, on how stacks share parameters, are variants of base: encoder–decoder, `shared`, `six_layers` and
`prefix_lm`, all denoising.

`tiny` (seed 0): 4.240 nats and accuracy 33.1 % over WikiText-2's validation text after 200 steps, sentinels and ends
among the 84,512 predictions; the same on 1 and on 8 devices.

| variant | parameters | published (denoising; GLUE, CNN/DM ROUGE-2, SQuAD) | obtained |
|---|---|---|---|
| base | 222,903,552 | 83.28, 19.24, 80.88 | not yet run |
| shared | 137,949,312 | 82.81, 18.78, 80.63 | not yet run |
| six_layers | 123,790,080 | 80.88 (GLUE) | not yet run |
| prefix_lm | 109,628,544 | 81.82 (GLUE) | not yet run |
"""

from data.config import UL2, DataConfig, Files, HuggingFace, Objective, SentencePiece, SpanCorruption
from experiments import dataset
from model.config import TransformerConfig
from train.config import Adafactor, AdamW, Checkpointing, Evaluation, Experiment, InverseSquareRoot, Linear, Loss

WIKITEXT2 = "language_modeling/wikitext2/"
T5 = dict(
    stack="encoder_decoder",
    vocab_size=32_128,
    positions="t5_relative",
    norm="rms",
    norm_epsilon=1e-6,
    activation="relu",
    use_bias=False,
    attention_scale=1.0,
    scale_logits=True,
    initializer="fan_in",
    decoder_start_id=0,
    dropout_rate=0.1,
    attention_dropout_rate=0.1,
    activation_dropout_rate=0.1,
)
T5_1_1 = T5 | dict(
    activation="geglu",
    scale_logits=False,
    tie_embeddings=False,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    activation_dropout_rate=0.0,
)


def base() -> Experiment:
    """220M parameters."""
    return _pretraining("base", num_layers=12, embed_dim=768, mlp_dim=3072, num_heads=12)


def small() -> Experiment:
    """60M parameters."""
    return _pretraining("small", num_layers=6, embed_dim=512, mlp_dim=2048, num_heads=8)


def large() -> Experiment:
    """770M parameters."""
    return _pretraining("large", num_layers=24, embed_dim=1024, mlp_dim=4096, num_heads=16, remat="dots")


def v1_1_small() -> Experiment:
    """77M parameters."""
    return _pretraining("v1_1_small", T5_1_1, num_layers=8, embed_dim=512, mlp_dim=1024, num_heads=6, head_dim=64)


def v1_1_base() -> Experiment:
    """250M parameters."""
    return _pretraining("v1_1_base", T5_1_1, num_layers=12, embed_dim=768, mlp_dim=2048, num_heads=12)


def v1_1_large() -> Experiment:
    """780M parameters."""
    sizes = dict(num_layers=24, embed_dim=1024, mlp_dim=2816, num_heads=16, remat="dots")
    return _pretraining("v1_1_large", T5_1_1, **sizes)


def shared() -> Experiment:
    """Encoder and decoder with the same parameters."""
    return _row("shared", share_encoder_decoder=True)


def six_layers() -> Experiment:
    """Six layers in each stack."""
    return _row("six_layers", num_layers=6)


def prefix_lm() -> Experiment:
    """A decoder of twelve layers that sees all of the corrupted text at once and writes the spans."""
    return _row("prefix_lm", stack="decoder", decoder_start_id=None, max_length=1024)


def tiny() -> Experiment:
    """The same architecture at a laptop's size, on WikiText-2."""
    return _tiny("tiny", SpanCorruption())


def tiny_ul2() -> Experiment:
    """UL2's mixture of denoisers (Tay et al. 2023), on WikiText-2."""
    return _tiny("tiny_ul2", UL2())


def _pretraining(name: str, architecture: dict = T5, **sizes) -> Experiment:
    return Experiment(
        name=f"t5:{name}",
        num_steps=2**19,
        batch_size=128,
        model=TransformerConfig(max_length=512, dtype="bfloat16", **architecture | sizes),
        objective=SpanCorruption(),
        data=DataConfig(
            train=(HuggingFace(path="allenai/c4", name="en"),),
            validation=(HuggingFace(path="allenai/c4", name="en", split="validation"),),
            tokenizer=SentencePiece(vocab_size=32_000),
            length=512,
        ),
        optimizer=Adafactor(peak_learning_rate=0.01, schedule=InverseSquareRoot(warmup_steps=10_000), clip_norm=None),
        loss=Loss(z_loss=1e-4),
        evaluation=Evaluation(every=5000, batch_size=128, max_batches=100),
        checkpoint=Checkpointing(every=5000),
    )


def _row(name: str, **changes) -> Experiment:
    whole = base()
    return whole.model_copy(
        update=dict(name=f"t5:{name}", model=TransformerConfig.model_validate(whole.model.model_dump() | changes))
    )


def _tiny(name: str, objective: Objective) -> Experiment:
    return Experiment(
        name=f"t5:{name}",
        num_steps=200,
        batch_size=16,
        model=TransformerConfig(
            num_layers=3,
            embed_dim=128,
            mlp_dim=256,
            num_heads=4,
            max_length=128,
            **T5_1_1 | dict(vocab_size=4224),
        ),
        objective=objective,
        data=DataConfig(
            train=(Files(path=dataset(WIKITEXT2 + "train.txt.gz")),),
            validation=(Files(path=dataset(WIKITEXT2 + "valid.txt")),),
            tokenizer=SentencePiece(vocab_size=4096),
            length=128,
        ),
        optimizer=AdamW(peak_learning_rate=5e-4, schedule=Linear(warmup_steps=40), b2=0.999, epsilon=1e-6),
        evaluation=Evaluation(every=100, batch_size=64, prompts=("The game was",), sample_tokens=30),
        checkpoint=Checkpointing(every=100),
    )
