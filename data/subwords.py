"""Trains a SentencePiece model whose encoding loses nothing: see `SentencePieceTokenizer`."""

import heapq
import io
import random
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from data.config import SentencePiece
from data.document import DataError

# SentencePiece drops longer lines from training without a word, so they are cut here.
_MAX_SENTENCE_BYTES = 16384
_MAX_SENTENCE_CHARACTERS = _MAX_SENTENCE_BYTES // 4
# The result depends on the number of threads, so it is the same on every machine.
_THREADS = 8
_UNTRAINABLE = re.compile("[\u2581\x00]")  # SentencePiece's sign for a space, and the end of a C string


def train_subwords(config: SentencePiece, texts: Iterable[str]) -> bytes:
    """Returns a serialized model trained on a sample of `texts`.

    Raises DataError if there is no text, or if it cannot fill or does not fit `vocab_size`.
    """
    sentences = _sample(_sentences(texts), config.max_training_characters)
    if not sentences:
        raise DataError("the tokenizer cannot be trained: there is no text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.algorithm,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            # Unigram stops early where the text is too small; byte-pair encoding must fill its vocabulary.
            hard_vocab_limit=config.algorithm == "bpe",
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # indentation costs one token, not one per space
            split_digits=True,  # numbers are spelled alike wherever they stand
            byte_fallback=True,
            user_defined_symbols=["\n"],
            max_sentence_length=_MAX_SENTENCE_BYTES,
            num_threads=_THREADS,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            minloglevel=4,
        )
    except RuntimeError as error:
        raise DataError(_explain(str(error), config)) from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for part in _UNTRAINABLE.split(line):
                for start in range(0, len(part), _MAX_SENTENCE_CHARACTERS):
                    yield part[start : start + _MAX_SENTENCE_CHARACTERS]


def _sample(sentences: Iterable[str], max_characters: int) -> list[str]:
    """Returns sentences of at most `max_characters` in all, each equally likely, in their order.

    Every sentence draws a number and the largest are dropped, so that one pass is enough.
    """
    draw = random.Random(0).random
    kept: list[tuple[float, int, str]] = []  # a heap of (-draw, index, sentence)
    characters = 0
    for index, sentence in enumerate(sentences):
        heapq.heappush(kept, (-draw(), index, sentence))
        characters += len(sentence)
        while characters > max_characters:
            characters -= len(heapq.heappop(kept)[2])
    return [sentence for _, _, sentence in sorted(kept, key=lambda item: item[1])]


def _explain(message: str, config: SentencePiece) -> str:
    if largest := re.search(r"too high.*<= (\d+)", message):
        return (
            f"the text is too small for vocab_size {config.vocab_size}: "
            f"the largest possible with {config.algorithm} is {largest[1]}"
        )
    if needed := re.search(r"smaller than required_chars\D*\d+ vs (\d+)", message):
        return (
            f"vocab_size {config.vocab_size} is too small: this text needs more than {needed[1]}; "
            "raise vocab_size or lower character_coverage"
        )
    return f"the tokenizer cannot be trained on this text: {message}"
