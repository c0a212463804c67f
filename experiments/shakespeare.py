"""Character-level Shakespeare, the two settings of nanoGPT (github.com/karpathy/nanoGPT, README and config/).

    mkdir -p datasets/language_modeling/tinyshakespeare      # input.txt of github.com/karpathy/char-rnn goes here
    python -m train shakespeare:cpu
    python -m train shakespeare:gpu

| variant | published | obtained | setting (layers/heads/width) |
|---|---|---|---|
| cpu | 1.88 | 1.816, seed 0 | 4/4/128, length 64, batch 12, 2,000 steps, no dropout |
| gpu | 1.4697, best of the run | not yet run on a GPU | 6/6/384, length 256, batch 64, 5,000 steps, dropout 0.2 |

Published: README and config/train_shakespeare_char.py of nanoGPT. Loss is nats per character on the last tenth of
the file, the first nine tenths being for training. nanoGPT estimates it from random windows (20 batches for cpu, some
15,000 characters); here every character is predicted once, in consecutive windows. Its alphabet has 65 characters; the
four special tokens make it 69. As there, windows are cut anywhere and attention sees all of a window.

Optimizer, as there: AdamW, cosine to a tenth after 100 warm-up steps, b2 0.99, weight decay 0.1, clip 1, learning rate
1e-3 (gpu). For cpu it is 2e-3: with nanoGPT's 1e-3 this code ends at 1.907 (seed 0).
"""

from data.config import Characters, DataConfig, Files
from experiments import dataset
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Cosine, Evaluation, Experiment

TEXT = dataset("language_modeling/tinyshakespeare/input.txt")


def cpu() -> Experiment:
    """Small enough for a laptop: minutes."""
    return Experiment(
        name="shakespeare:cpu",
        num_steps=2000,
        batch_size=12,
        model=TransformerConfig(
            vocab_size=69,
            num_layers=4,
            num_heads=4,
            embed_dim=128,
            max_length=64,
            positions="learned",
            position_init_stddev=0.02,
            use_bias=False,
            activation="gelu",
        ),
        data=DataConfig(
            train=(Files(path=TEXT, span=(0.0, 0.9)),),
            validation=(Files(path=TEXT, span=(0.9, 1.0)),),
            tokenizer=Characters(),
            length=64,
            attend_across_documents=True,
        ),
        optimizer=AdamW(peak_learning_rate=2e-3, b2=0.99, schedule=Cosine(warmup_steps=100)),
        evaluation=Evaluation(every=250, batch_size=64, prompts=("\n",), sample_tokens=500),
    )


def gpu() -> Experiment:
    """nanoGPT's reference setting: minutes on one GPU."""
    base = cpu()
    return base.model_copy(
        update=dict(
            name="shakespeare:gpu",
            num_steps=5000,
            batch_size=64,
            model=base.model.model_copy(
                update=dict(
                    num_layers=6,
                    num_heads=6,
                    embed_dim=384,
                    max_length=256,
                    dropout_rate=0.2,
                    attention_dropout_rate=0.2,
                    dtype="bfloat16",
                )
            ),
            data=base.data.model_copy(update=dict(length=256)),
            optimizer=base.optimizer.model_copy(update=dict(peak_learning_rate=1e-3)),
            checkpoint=Checkpointing(every=250),
        )
    )
