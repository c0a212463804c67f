"""A run as a model of EleutherAI's lm-evaluation-harness; needs the package lm_eval."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from data import dialogue
from data import tokenizer as tokenizers
from data.task_encoding import target_tokenizer
from eval.batch_decoding import Prompt
from eval.completion import generate
from eval.source_reader import SourceReader, reads_sources
from model.decoding import Sampling, bucket
from model.transformer import Decoder, EncoderDecoder
from train.config import UserError
from train.run import Run

_MAX_NEW_TOKENS = 256  # where a task does not say; lm-eval's own default
_SAMPLING = ("temperature", "top_p", "top_k")
# Stands before a role's name in a text that `apply_chat_template` made. Unicode reserves it for such use inside a
# program; it is taken out of the messages, so that they cannot spell a role.
_MARK = "\ufdd0"
_ROLE = re.compile(f"{_MARK}({'|'.join(map(re.escape, dialogue.TEMPLATE_TOKENS))})")

_Request = tuple[tuple[str, str], list[int], list[int]]  # texts, tokens of the context, tokens of the continuation


class RunModel(TemplateLM):
    """Scores and writes texts as the run's model reads them.

    A decoder reads the begin of text, the context and the continuation; a model of texts from texts, the context as a
    source and the continuation as its text. A context that is too long loses its start.
    Raises UserError for a run that writes no text.
    """

    def __init__(self, run: Run, batch_size: int):
        super().__init__()
        if not isinstance(run.model, Decoder | EncoderDecoder):
            raise UserError(f"{run.directory} has an encoder, which writes no text; lm-eval needs a decoder")
        self._run, self.batch_size, self.max_length = run, batch_size, run.config.model.max_length
        self._sources = SourceReader(run) if reads_sources(run) else None
        self.backend = "causal" if self._sources is None else "seq2seq"  # whether the continuation is encoded apart
        self._has_roles = self._sources is None and dialogue.can_chat(run.tokenizer)
        self._written = target_tokenizer(run.tokenizer)

    # Tokens

    @property
    def eot_token_id(self) -> int:
        tokenizer = self._run.tokenizer
        return tokenizer.named[dialogue.END_TOKEN] if self._has_roles else tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context."""
        return self._run.tokenizer.bos_id if self._sources is None else self._run.tokenizer.eos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text, or of a prompt by `apply_chat_template`; a decoder's begin with the begin of text.

        `add_special_tokens`: False is for what is no context.
        """
        if self._sources is not None:
            is_context = add_special_tokens is not False
            return self._sources.encode(string) if is_context else self._written.encode(string).tolist()
        tokenizer = self._run.tokenizer
        text, *rest = _ROLE.split(string) if self._has_roles else [string]
        ids = tokenizer.encode(text).tolist()
        for name, text in zip(rest[::2], rest[1::2], strict=True):
            ids += [tokenizer.named[name], *tokenizer.encode(text).tolist()]
        return ids if add_special_tokens is False else [tokenizer.bos_id, *ids]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval defines it; a continuation that melts into the context's last token is encoded by itself."""
        end = len(context.rstrip())
        context, continuation = context[:end], context[end:] + continuation  # the space before a word is part of it
        context_ids, ids = super()._encode_pair(context, continuation)
        return context_ids, ids or self._written.encode(continuation).tolist()

    @property
    def tokenizer_name(self) -> str:
        return f"quire-{tokenizers.fingerprint(self._run.tokenizer)}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return " ".join(f"{name} TEXT {dialogue.END_TOKEN}" for name in dialogue.ROLE_TOKENS.values())

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The template of `data.dialogue`, each special token led by a mark that `tok_encode` knows."""
        if not self._has_roles:
            raise UserError(f"{self._run.directory} has learned no chat template; leave out --apply-chat-template")
        parts = []
        for message in chat_history:
            text = message["content"].strip().replace(_MARK, "\ufffd")
            parts.append(f"{_MARK}{dialogue.ROLE_TOKENS[message['role']]}{text}{_MARK}{dialogue.END_TOKEN}")
        if add_generation_prompt:
            parts.append(f"{_MARK}{dialogue.ROLE_TOKENS['assistant']}")
        else:  # the last message is to be continued
            parts[-1] = parts[-1].removesuffix(f"{_MARK}{dialogue.END_TOKEN}")
        return "".join(parts)

    # Scores

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """For each request log P(continuation | context), and whether each of its tokens is the likeliest there."""
        rows = [self._row(context, continuation) for _, context, continuation in requests]
        order = sorted(range(len(rows)), key=lambda i: [len(rows[i][name]) for name in ("source", "inputs")])
        results: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        with tqdm(total=len(rows), disable=disable_tqdm, desc="Scoring") as progress:
            for first in range(0, len(order), self.batch_size):
                places = order[first : first + self.batch_size]
                batch = self._batch([rows[i] for i in places])
                scored = _score(self._run.model, self._run.params, batch, self._run.reads_prefixes)
                scores, greedy = map(np.asarray, scored)
                for row, place in enumerate(places):
                    results[place] = (float(scores[row]), bool(greedy[row]))
                    if requests[place][0] is not None:  # None: a window of a text
                        self.cache_hook.add_partial("loglikelihood", requests[place][0], results[place])
                progress.update(len(places))
        if not all(np.isfinite(score) for score, _ in results):
            raise UserError("the model's scores are not finite: its parameters are damaged, or its training diverged")
        return results

    def _row(self, context: list[int], continuation: list[int]) -> dict[str, list[int]]:
        """What the model reads: the source, if it has an encoder, inputs, targets and how many inputs are context."""
        if len(continuation) > self.max_length:
            tokens = f"{len(continuation)} tokens, which is more than the {self.max_length} of the model's context"
            raise UserError(f"a continuation has {tokens}")
        source, read = None, context
        if self._sources is not None:
            if context == [self.prefix_token_id]:  # which stands for none
                context = self._sources.encode("")
            source, read = self._sources.prompt(context[-self._sources.room(len(continuation) - 1) :])
        tokens = [*read, *continuation][-(self.max_length + 1) :]
        return {"source": source or [], "inputs": tokens[:-1], "targets": tokens[1:], "scored": continuation}

    def _batch(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, np.ndarray]:
        """Arrays [batch_size, one of few lengths], zero where there is nothing."""
        longest = {name: max(len(row[name]) for row in rows) for name in ("source", "inputs")}
        names = ("inputs", "targets", "is_token", "is_scored")
        sizes = dict.fromkeys(names, longest["inputs"])
        if longest["source"]:
            sizes |= dict.fromkeys(("source", "is_source"), longest["source"])
        batch = {
            name: np.zeros((self.batch_size, bucket(max(size, 1), self.max_length)), np.int32)
            for name, size in sizes.items()
        }
        for i, row in enumerate(rows):
            end, start = len(row["inputs"]), len(row["inputs"]) - len(row["scored"])
            batch["inputs"][i, :end], batch["targets"][i, :end] = row["inputs"], row["targets"]
            batch["is_token"][i, :end], batch["is_scored"][i, start:end] = 1, 1
            if row["source"]:
                batch["source"][i, : len(row["source"])] = row["source"]
                batch["is_source"][i, : len(row["source"])] = 1
        return batch

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log P of whole texts: each token once, given what comes before it in windows of the context's length."""
        windows: list[_Request] = []
        text_of = []
        for i, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            found = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(None, *make_disjoint_window(window)) for window in found]
            text_of += [i] * (len(windows) - len(text_of))
        totals = [0.0] * len(requests)
        for i, (score, _) in zip(text_of, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[i] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # Texts

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop text, the end of text or the task's `max_gen_toks`.

        Greedy, unless the task samples (`do_sample`, or a temperature above 0).
        """
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Writing") as progress:
            for told, places in groups.items():
                options = json.loads(told)
                contexts = [requests[i].args[0] for i in places]
                for i, text in zip(places, self._write(contexts, options), strict=True):
                    texts[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                progress.update(len(places))
        return texts

    def _write(self, contexts: list[str], options: dict[str, Any]) -> list[str]:
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else until
        max_new_tokens = int(options.get("max_gen_toks") or _MAX_NEW_TOKENS)
        greedy = not options.get("do_sample", float(options.get("temperature") or 0) > 0)
        chosen = {name: options[name] for name in _SAMPLING if options.get(name) is not None}
        try:
            sampling = Sampling(temperature=0.0) if greedy else Sampling(**chosen)
        except ValueError as error:
            raise UserError(f"generation_kwargs of the task: {error}") from error
        completions = generate(
            self._run.model,
            self._run.params,
            self._written,
            [self._prompt(context, max_new_tokens) for context in contexts],
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            stop=[text for text in until if text],
            eos_id=self.eot_token_id if self._has_roles else None,
            is_prefix=self._run.reads_prefixes,
        )
        return [completion.text for completion in completions]

    def _prompt(self, context: str, max_new_tokens: int) -> list[int] | Prompt:
        """The end of the context that leaves room for the text, or half of the model's context."""
        tokens = self.tok_encode(context)
        if self._sources is not None:
            return self._sources.prompt(tokens[-self._sources.room(max_new_tokens) :])
        return tokens[-max(self.max_length - max_new_tokens, self.max_length // 2) :]

    def get_model_info(self) -> dict[str, Any]:
        return {"run": str(self._run.directory), "step": self._run.step}


@partial(jax.jit, static_argnames=("model", "reads_prefixes"))
def _score(
    model: Decoder | EncoderDecoder, params: Any, batch: dict[str, Int[Array, "batch length"]], reads_prefixes: bool
) -> tuple[Float[Array, "batch"], Bool[Array, "batch"]]:
    """log P of the targets that are scored, and whether all of them are the likeliest."""
    reading = dict(segment_ids=batch["is_token"])
    if isinstance(model, EncoderDecoder):
        inputs = (batch["source"], batch["inputs"])
        reading["encoder_segment_ids"] = batch["is_source"]
    else:
        inputs = (batch["inputs"],)
        if reads_prefixes:  # the last token of the context is an input that predicts the first of the continuation
            is_target = jnp.roll(batch["is_scored"], 1, axis=1).at[:, 0].set(0)
            reading["prefix"] = (batch["is_token"] - is_target) > 0
    logits = model.apply({"params": params}, *inputs, **reading).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    log_probabilities = chosen - jax.nn.logsumexp(logits, axis=-1)
    is_scored = batch["is_scored"] > 0
    is_likeliest = logits.argmax(axis=-1) == batch["targets"]
    return (log_probabilities * is_scored).sum(axis=1), (is_likeliest | ~is_scored).all(axis=1)
