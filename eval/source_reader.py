"""What a model that writes a text from a text reads before it writes: after training the same as in training."""

from __future__ import annotations

from collections.abc import Sequence

from data.cleaning import clean
from data.examples import Examples, make_examples
from data.records import Record
from data.task_batches import TaskBatchMaker
from data.task_config import TextToText
from data.task_encoding import Template
from eval.batch_decoding import Prompt
from eval.completion import plain_source
from model.transformer import EncoderDecoder
from train.config import Experiment
from train.run import Run


def reads_sources(run: Run) -> bool:
    """Whether the model writes a text from a text, each with an end of its own."""
    return isinstance(run.model, EncoderDecoder) or isinstance(run.config.objective, TextToText)


def task_prompt(experiment: Experiment, examples: Examples, source: Sequence[int]) -> Prompt:
    """What is read before the text of an example is written, from its `sources`."""
    before = TaskBatchMaker(examples, False, decoder_start_id=experiment.model.decoder_start_id).decoder_prompt
    return (None, [*source, *before]) if experiment.model.stack == "decoder" else ([*source], before)


class SourceReader:
    """Makes prompts of texts that are no records, as `task_prompt` makes them of records.

    A run of another objective reads a source as in pretraining, the text and its end.
    """

    def __init__(self, run: Run):
        self._run, self._examples, config = run, None, run.config
        if isinstance(config.objective, TextToText):
            nothing = [Record({"source": "", "target": [""]}, "")]
            options = dict(stack=config.model.stack)
            self._examples = make_examples(config.data, "test", nothing, config.objective, run.tokenizer, **options)
            encoder, end = self._examples.encoder, (run.tokenizer.eos_id,)
            self._template = encoder.template if encoder.stack == "encoder_decoder" else Template((), end, ())

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without what stands around them."""
        config = self._run.config
        if self._examples is not None:
            text = config.objective.prefix + clean(text, config.data.cleaning).strip()
        return self._run.tokenizer.encode(text).tolist()

    def prompt(self, tokens: Sequence[int]) -> Prompt:
        """What is read before a text is written, from the tokens of its source."""
        if self._examples is None:
            return plain_source(self._run.model, self._run.tokenizer, tokens)
        return task_prompt(self._run.config, self._examples, self._template.around(tokens).tolist())

    def room(self, max_new_tokens: int) -> int:
        """How many tokens a source may have. A decoder has one context for the source and the text, half for each."""
        length = self._run.config.model.max_length
        source, before = self.prompt([])
        if source is None:
            return max(length - max_new_tokens, length // 2, len(before) + 1) - len(before)
        return length - len(source)

    def read(self, text: str, max_new_tokens: int) -> tuple[Prompt, int]:
        """The prompt of a text, and how many tokens of its end are left out of it."""
        tokens, room = self.encode(text), self.room(max_new_tokens)
        return self.prompt(tokens[:room]), max(len(tokens) - room, 0)
