"""BERT: Pre-training of Deep Bidirectional Transformers (Devlin et al. 2019).

    python -m train bert:tiny                        # WikiText-2 on a laptop
    python -m train bert:base --mesh.fsdp 8          # Wikipedia, needs the `hf` extra and a network
    python -m train bert:base_512 --mesh.fsdp 8      # its last tenth, at length 512

Sizes are the paper's. Pretraining (appendix A.2): 256 sequences, 1,000,000 steps, of which 90 % at length 128 and the
rest at 512, Adam 1e-4 with 0.9/0.999, weight decay 0.01, 10,000 warm-up steps, linear decay, dropout 0.1, 15 % masked
80/10/10, and next-sentence prediction; epsilon 1e-6, clipping at 1, truncated normal 0.02 and 10 static masks a text
come from the released code, whose Adam has no bias correction (ours has). The two lengths are two runs here, the
second starting from the first's parameters with new moments. The text is English Wikipedia alone; the paper had
BooksCorpus, which is no longer given out, besides. The vocabulary is trained on the run's own text.

`linear_decoder` is the encoder–decoder of introductions to BERT: a pretrained encoder, and on top one linear layer to
the vocabulary as decoder, trained with cross entropy on masked text. Import the encoder first:

    python -m model.pretrained import bert-base-uncased runs/bert-base-uncased
    python -m train bert:linear_decoder --data.train my.txt

Another encoder needs --init-from, --data.tokenizer.path and its sizes: with a real MiniLM (6 layers of 384) and 150
steps of 1,024 tokens of WikiText-2 at 1e-3 the loss falls from 9.77 (step 10) to 6.53 on validation text.

`tiny` (seed 0): masked-LM loss 6.116 nats and accuracy 9.0 % on WikiText-2's validation text after 400 steps, on 1 and
on 8 devices (the entropy of that text's tokens is 6.27); it has hardly begun to use context.

| variant | parameters | published | obtained |
|---|---|---|---|
| base | 110M (110,106,428 with both heads) | GLUE 79.6 | not yet run |
| large | 340M (336,226,108) | GLUE 82.1 | not yet run |
"""

from data.config import DataConfig, Files, HuggingFace, MaskedLM, Pretrained, WordPiece
from experiments import dataset
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Evaluation, Experiment, Linear

WIKITEXT2 = "language_modeling/wikitext2/"
BERT = dict(
    stack="encoder",
    positions="learned",
    num_sentence_types=2,
    embedding_norm=True,
    norm_placement="post",
    norm_epsilon=1e-12,
    activation="gelu",
    heads=("lm", "sentence_pair"),
    pooler="tanh",
    head_transform=True,
    head_bias=True,
    initializer="truncated_normal",
    position_init_stddev=0.02,
    scale_residual_init=False,
    dropout_rate=0.1,
    attention_dropout_rate=0.1,
)


def base() -> Experiment:
    """110M parameters, the first 900,000 steps."""
    return Experiment(
        name="bert:base",
        num_steps=900_000,
        batch_size=256,
        model=TransformerConfig(
            vocab_size=30_522, num_layers=12, embed_dim=768, num_heads=12, max_length=512, dtype="bfloat16", **BERT
        ),
        objective=MaskedLM(sentence_pairs="next_sentence", duplicates=10),
        data=DataConfig(
            train=(HuggingFace(path="wikimedia/wikipedia", name="20231101.en"),),
            held_out_fraction=0.0005,
            tokenizer=WordPiece(vocab_size=30_522),
            length=128,
        ),
        optimizer=_adam(1e-4, Linear(warmup_steps=10_000, final_fraction=0.1)),
        evaluation=Evaluation(every=5000, batch_size=256, max_batches=100),
        checkpoint=Checkpointing(every=5000),
    )


def base_512() -> Experiment:
    """The last 100,000 steps, at length 512."""
    first = base()
    changes = dict(
        name="bert:base_512",
        num_steps=100_000,
        init_from=first.directory,
        data=first.data.model_copy(update=dict(length=512)),
        optimizer=_adam(1e-5, Linear()),
    )
    return first.model_copy(update=changes)


def large() -> Experiment:
    """340M parameters, the first 900,000 steps."""
    small = base()
    sizes = dict(num_layers=24, embed_dim=1024, num_heads=16, remat="dots")
    return small.model_copy(update=dict(name="bert:large", model=small.model.model_copy(update=sizes)))


def tiny() -> Experiment:
    """The same architecture at a laptop's size, on WikiText-2."""
    return Experiment(
        name="bert:tiny",
        num_steps=400,
        batch_size=32,
        model=TransformerConfig(
            vocab_size=4096,
            num_layers=4,
            embed_dim=128,
            num_heads=4,
            max_length=128,
            **BERT | dict(heads=("lm",), pooler="none", dropout_rate=0.0, attention_dropout_rate=0.0),
        ),
        objective=MaskedLM(),
        data=DataConfig(
            train=(Files(path=dataset(WIKITEXT2 + "train.txt.gz")),),
            validation=(Files(path=dataset(WIKITEXT2 + "valid.txt")),),
            tokenizer=WordPiece(vocab_size=4096),
            length=128,
            attend_across_documents=True,
        ),
        optimizer=_adam(1e-3, Linear(warmup_steps=40)),
        evaluation=Evaluation(every=200, batch_size=64),
        checkpoint=Checkpointing(every=200),
    )


def linear_decoder() -> Experiment:
    """A pretrained BERT as encoder and one linear layer as decoder."""
    small = base()
    model = small.model.model_copy(
        update=dict(heads=("lm",), pooler="none", tie_embeddings=False, head_transform=False, head_bias=True)
    )
    run = "runs/bert-base-uncased"
    return Experiment(
        name="bert:linear_decoder",
        num_steps=1000,
        batch_size=32,
        model=model,
        objective=MaskedLM(),
        data=DataConfig(tokenizer=Pretrained(path=f"{run}/tokenizer"), length=128),
        optimizer=_adam(5e-5, Linear(warmup_steps=100)),
        init_from=run,
    )


def _adam(rate: float, schedule: Linear) -> AdamW:
    return AdamW(peak_learning_rate=rate, schedule=schedule, b2=0.999, epsilon=1e-6, weight_decay=0.01)
