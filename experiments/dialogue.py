"""Conversation by a small decoder from scratch: everyday English, short replies in Chinese.

    python -m train dialogue:dailydialog
    python -m eval.chat runs/dialogue-dailydialog

The assistant's turns alone are learned; the user's are context. Scores are perplexity over the assistant's turns and
the variety of sampled replies (distinct-1 and 2, Li et al. 2016). DialoGPT (Zhang et al. 2020) and CDial-GPT (Wang et
al. 2020) do the same from pretrained models, with thousands of times the text.

Obtained: `lccc`, its 2,000 validation exchanges, seed 0: perplexity 85.2 (95 % interval 80.1 to 91.1) per character,
ends of turns among them, distinct-1 and 2 of sampled replies 0.30 and 0.58, in 10 minutes on one CPU core.
`dailydialog`, its 1,000 test conversations, seed 0: perplexity 61.6 (59.0 to 64.2) per token, 401 (364 to 441) per
word, distinct-1 and 2 0.35 and 0.67, in 22 minutes on one core that others used, too. Conversations with `lccc`,
replies of at most 20 characters at temperature 0.7, and with `dailydialog` at 0.5:

    You: 你好              Model: 你还好！
    You: 今天吃什么         Model: 这个你吃
    You: 你喜欢看电影吗     Model: 还没有

    You: Hi! How are you?                       Model: Yes .
    You: What would you like to eat?            Model: I ’ m looking for that .
    You: Can you help me find the station?      Model: Yes , please .
    You: Do you like your new job?              Model: I ’ m going to have a problem .
"""

from data.config import Characters, DataConfig, Dialogue, SentencePiece
from data.task_config import Records
from experiments import dataset
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Cosine, Evaluation, Experiment


def dailydialog() -> Experiment:
    """DailyDialog (Li et al. 2017): trained on the 1,000 conversations of its validation part, scored on test."""
    source = dict(format="lines", fields={"turns": "text"})
    return _experiment(
        "dailydialog",
        Dialogue(separator="__eou__"),
        DataConfig(
            train=(Records(path=_daily("validation"), **source),),
            test=(Records(path=_daily("test"), **source),),
            tokenizer=SentencePiece(algorithm="bpe", vocab_size=2000),
            length=192,
        ),
        vocab_size=2010,
        num_steps=600,
    )


def lccc() -> Experiment:
    """LCCC (Wang et al. 2020): 10,000 short exchanges of Chinese social media, spaces between characters removed."""
    source = dict(format="lines", fields={"turns": "text"}, replace={"turns": {" ": ""}})
    return _experiment(
        "lccc",
        Dialogue(separator="\t"),
        DataConfig(
            train=(Records(path=dataset("dialogue/lccc_toy_zh/toy_train.txt"), **source),),
            test=(Records(path=dataset("dialogue/lccc_toy_zh/toy_valid.txt"), **source),),
            tokenizer=Characters(),
            length=128,
        ),
        vocab_size=5000,
        num_steps=1000,
    )


def _experiment(name: str, objective: Dialogue, data: DataConfig, *, vocab_size: int, num_steps: int) -> Experiment:
    return Experiment(
        name=f"dialogue:{name}",
        num_steps=num_steps,
        batch_size=32,
        model=TransformerConfig(
            vocab_size=vocab_size,
            num_layers=4,
            embed_dim=192,
            num_heads=4,
            mlp_dim=512,
            max_length=data.length,
            norm="rms",
            use_bias=False,
            activation="swiglu",
            dropout_rate=0.2,
        ),
        objective=objective,
        data=data,
        optimizer=AdamW(peak_learning_rate=1e-3, schedule=Cosine(warmup_steps=100), weight_decay=0.1),
        evaluation=Evaluation(every=200),
        checkpoint=Checkpointing(every=num_steps),
        log_every=25,
    )


def _daily(split: str) -> str:
    return dataset(f"dialogue/dailydialog_valid_test/{split}/dialogues.txt")
