"""`python -m eval baseline RUN`: what needs no neural network, on the same records and by the same scores as the run.

A baseline is a function from a task and its records to predictions, as `predictions.py` has them.

    classification   tf-idf with logistic regression; the most frequent label
    regression       cosine of the two texts' tf-idf vectors; the mean of the training labels
    tagging          entities of the training data, longest match first (Tjong Kim Sang & De Meulder 2003)
    span_answering   the first sentence; the sentence with most words of the question
    text_to_text     the source itself; for ROUGE its first sentences, or its start as long as a mean target; for labels
                     the most frequent target
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.records import Record
from data.tagging import spans_from_tags
from data.task_config import Classification, Dialogue, Regression, SpanAnswering, Tagging, Task, TextToText
from eval.command_line import add_step, print_anything, run_config
from eval.task_measures import words
from model.text_table import aligned
from train.command_line import user_errors
from train.config import UserError

if TYPE_CHECKING:
    from eval.task_measures import Prediction

Records = Sequence[Record]


class Baseline(NamedTuple):
    """A system: what it is, in a line, and its predictions, without what they repeat of the records."""

    name: str
    protocol: str
    answers: list[dict[str, Any]]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval baseline",
        description="Score simple systems on a run's records, and compare the run with them.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="A run directory.")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="Which records.")
    add_step(parser)
    parser.add_argument("--json", action="store_true", help="Print the same as one JSON object.")
    options = parser.parse_args(argv)
    print_anything()
    with user_errors():
        config = run_config(options.run)
        if not config.is_task or isinstance(config.objective, Dialogue):
            raise UserError(f"{options.run} learned {config.objective.kind}, for which there are no baselines")
        result = compare_with_baselines(options.run, options.split, options.step)
    print(json.dumps(result, indent=2, ensure_ascii=False) if options.json else table(result))
    return 0


def compare_with_baselines(directory: str, split: str, step: str | int) -> dict[str, Any]:
    """Store every baseline's predictions and scores in RUN/evaluation/baselines, and compare the run with each."""
    from data.examples import split_records
    from eval import results
    from eval.compare import check_asked, compare_measures, predictions_of
    from eval.predictions import question
    from eval.task_measures import measures
    from eval.tasks import protocol
    from train.run import load_run

    run = load_run(directory, step)
    objective, data = run.config.objective, run.config.data
    own = predictions_of(run, split, step)
    own_measures = measures(objective, own)

    def read(part: str) -> list[Record]:
        return split_records(data, part, objective, lambda line: None)

    records, train = read(split), read("train")
    tuning = read("validation") if data.validation or data.held_out_fraction else []
    systems = []
    for system in baselines(objective, train, tuning, records):
        found: list[Prediction] = [
            question(record, objective) | answer for record, answer in zip(records, system.answers, strict=True)
        ]
        description = {
            "run": directory,
            "split": split,
            "system": f"{system.name}: {system.protocol}",
            "overlap with training": None,
            "protocol": protocol(run, split, data, step, None) | {"decoding": None, "checkpoint": None},
        }
        folder = Path(directory) / "evaluation" / "baselines" / f"{split}-{system.name}"
        stored = results.write(folder, objective, found, description)
        check_asked(own, found)
        compared = compare_measures(own_measures, measures(objective, found))
        comparisons = [comparison.as_json() for comparison in compared]
        systems.append(
            {"name": system.name, "protocol": system.protocol, "scores": stored["scores"], "comparisons": comparisons}
        )
    return {"run": directory, "step": run.step, "split": split, "records": len(records), "baselines": systems}


def table(result: dict[str, Any]) -> str:
    """Aligned lines for a person: of each score the run's value and the baselines', with intervals."""
    from eval.results import number, protocols

    rows = [("", "", "value", "95 % interval", "run - baseline", "95 % interval", "p")]
    systems, last = result["baselines"], None
    for name in dict.fromkeys(c["name"] for system in systems for c in system["comparisons"]):
        for system in systems:
            for c in (c for c in system["comparisons"] if c["name"] == name):
                if name != last:
                    rows.append((name, "run", number(c["first"]), "", "", "", ""))
                last = name
                score = next(s for s in system["scores"] if s["name"] == name)
                intervals = [f"{number(x['low'])} … {number(x['high'])}" for x in (score, c)]
                difference = (number(c["difference"]), intervals[1], number(c["p_value"]))
                rows.append(("", system["name"], number(score["value"]), intervals[0], *difference))
    heads = [("run", f"{result['run']}, step {result['step']}")]
    heads += [("records", f"{result['records']:,} of {result['split']}")]
    heads += [(system["name"], system["protocol"]) for system in systems]
    shown = {c["name"]: c for system in systems for c in system["comparisons"]}
    return "\n".join([*aligned(heads), "", *aligned(rows), "", *protocols(list(shown.values()))])


def baselines(objective: Task, train: Records, tuning: Records, records: Records) -> Iterator[Baseline]:
    """The systems of a task, which learn from `train` and choose by `tuning`, and what they say of `records`."""
    yield from _SYSTEMS[type(objective)](objective, train, tuning, records)


# Labels and numbers

_FACTORS = (0.1, 1.0, 10.0, 100.0)  # C of logistic regression
_CHINESE = 0.3  # of the characters, and a text is taken for Chinese


def _labels(objective: Classification, train: Records, tuning: Records, records: Records) -> Iterator[Baseline]:
    counts = Counter(record.fields["label"] for record in train)
    most = max(objective.labels, key=lambda label: counts[label])
    what = f"always {most!r}, the most frequent training label"
    yield Baseline("majority", what, [{"predicted": most}] * len(records))
    if len(counts) < 2:
        return
    linear_model = _sklearn("linear_model")
    vectorize, features_are = _vectorizer(train)
    features, labels = vectorize(train), [record.fields["label"] for record in train]
    tuned, right = vectorize(tuning) if tuning else None, [record.fields["label"] for record in tuning]
    scored = {}
    for factor in _FACTORS if tuning else (1.0,):
        model = linear_model.LogisticRegression(C=factor, max_iter=1000).fit(features, labels)
        scored[factor] = (np.mean(model.predict(tuned) == right) if tuning else 0.0, model)
    factor = max(scored, key=lambda factor: scored[factor][0])
    model = scored[factor][1]
    by = f"the best of {', '.join(map(str, _FACTORS))} by accuracy on validation" if tuning else "not tuned"
    classes = model.classes_.tolist()
    answers = []
    for row in model.predict_proba(vectorize(records)).tolist():
        probabilities = dict.fromkeys(objective.labels, 0.0) | dict(zip(classes, row, strict=True))
        answers.append({"predicted": max(classes, key=probabilities.get), "probabilities": probabilities})
    yield Baseline("tfidf_logistic", f"{features_are}, L2-regularized logistic regression, C = {factor}, {by}", answers)


def _numbers(objective: Regression, train: Records, _tuning: Records, records: Records) -> Iterator[Baseline]:
    mean = float(np.mean([record.fields["label"] for record in train]))
    yield Baseline("mean", "always the mean of the training labels", [{"predicted": mean}] * len(records))
    if all("second_text" in record.fields for record in (*train, *records)):
        vectorize, what = _vectorizer(train, both=True)
        first, second = (vectorize(records, name) for name in ("text", "second_text"))
        cosines = np.asarray(first.multiply(second).sum(axis=1)).ravel()  # the vectors have length 1
        values = objective.minimum + np.clip(cosines, 0, 1) * (objective.maximum - objective.minimum)
        span = f"scaled from 0 … 1 to {objective.minimum} … {objective.maximum}"
        answers = [{"predicted": float(value)} for value in values]
        yield Baseline("tfidf_cosine", f"cosine of the two texts: {what}; {span}", answers)


def _vectorizer(train: Records, both: bool = False) -> tuple[Callable[..., Any], str]:
    """A function from records to tf-idf vectors, and what these are.

    Each text of a pair has features of its own, unless `both` share theirs, to be compared.
    """
    from scipy import sparse

    names = _text_fields(train)
    texts = {name: [record.fields.get(name, "") for record in train] for name in names}
    joined = [text for name in names for text in texts[name]]
    kind, most = ("char", 3) if _is_chinese(joined) else ("word", 2)
    options = dict(analyzer=kind, ngram_range=(1, most), sublinear_tf=True, min_df=2 if len(train) >= 1000 else 1)
    if kind == "word":
        options["token_pattern"] = r"(?u)\b\w+\b|[^\w\s]"  # also words of one letter, and punctuation
    make = _sklearn("feature_extraction.text").TfidfVectorizer
    made = {name: make(**options).fit(joined if both else texts[name]) for name in names}

    def vectorize(records: Records, *wanted: str) -> Any:
        parts = [made[name].transform([record.fields.get(name, "") for record in records]) for name in wanted or names]
        return sparse.hstack(parts, format="csr")

    rare = ", in at least 2 texts" if options["min_df"] == 2 else ""
    return vectorize, f"tf-idf (1 + log tf) of {'character' if kind == 'char' else 'word'} 1- to {most}-grams{rare}"


def _text_fields(records: Records) -> list[str]:
    return [name for name in ("text", "second_text") if any(name in record.fields for record in records)]


def _is_chinese(texts: Sequence[str]) -> bool:
    sample = "".join(texts[:1000])
    return sum("\u4e00" <= character <= "\u9fff" for character in sample) > _CHINESE * len(sample)


def _sklearn(module: str) -> Any:
    from eval.scores.inputs import library

    return library(f"sklearn.{module}")


# Entities


def _entities(objective: Tagging, train: Records, _tuning: Records, records: Records) -> Iterator[Baseline]:
    types: dict[tuple[str, ...], Counter[str]] = {}
    for record in train:
        for kind, start, end in spans_from_tags(record.fields["tags"], objective.learned_scheme):
            types.setdefault(tuple(record.fields["tokens"][start:end]), Counter())[kind] += 1
    known = {entity: next(iter(counts)) for entity, counts in types.items() if len(counts) == 1}
    longest = max(map(len, known), default=0)
    answers = [{"predicted": _found(record.fields["tokens"], known, longest)} for record in records]
    protocol = "entities that have one type in the training data, longest match first from the left"
    yield Baseline("lookup", protocol, answers)


def _found(tokens: Sequence[str], known: dict[tuple[str, ...], str], longest: int) -> list[list[Any]]:
    spans, start = [], 0
    while start < len(tokens):
        sizes = range(min(longest, len(tokens) - start), 0, -1)
        size = next((size for size in sizes if tuple(tokens[start : start + size]) in known), 0)
        if size:
            spans.append([known[tuple(tokens[start : start + size])], start, start + size])
        start += size or 1
    return spans


# Texts


def _answers(objective: SpanAnswering, _train: Records, _tuning: Records, records: Records) -> Iterator[Baseline]:
    contexts = [sentences(record.fields["context"]) for record in records]
    yield Baseline("first_sentence", "the first sentence of the context", [{"predicted": s[0]} for s in contexts])
    asked = [_words(record.fields["question"]) for record in records]
    best = [max(s, key=lambda t, q=q: len(q & _words(t))) for s, q in zip(contexts, asked, strict=True)]
    what = "the first of the sentences with most words of the question, case ignored"
    yield Baseline("most_words", what, [{"predicted": sentence} for sentence in best])
    if objective.may_have_no_answer:
        yield Baseline("no_answer", "always that there is none", [{"predicted": ""}] * len(records))


def _texts(objective: TextToText, train: Records, _tuning: Records, records: Records) -> Iterator[Baseline]:
    sources = [record.fields["source"] for record in records]
    yield Baseline("copy", "the whole source", [{"predicted": source} for source in sources])
    if "rouge" in objective.scores:
        split = [sentences(source) for source in sources]
        for count in (1, 2, 3):
            leads = [{"predicted": "\n".join(found[:count])} for found in split]
            yield Baseline(f"lead_{count}", f"the first {count} sentence(s) or lines of the source", leads)
        mean = round(np.mean([len(words(record.fields["target"][0])) for record in train]))
        starts = [{"predicted": _start(source, mean)} for source in sources]
        yield Baseline("start", f"the first {mean} words of the source, as many as a mean training target has", starts)
    if {"accuracy", "exact_match"} & set(objective.scores):
        most = Counter(record.fields["target"][0] for record in train).most_common(1)[0][0]
        yield Baseline("majority", f"always {most!r}, the most frequent target", [{"predicted": most}] * len(records))


# A sentence ends at a line's end, after . ! ? before white space, and after their Chinese forms.
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")


def sentences(text: str) -> list[str]:
    """The sentences of a text, at least one, without white space around them."""
    return [sentence.strip() for sentence in _END.split(text) if sentence and sentence.strip()] or [text.strip()]


def _start(text: str, count: int) -> str:
    """The text up to its word number `count`, as it is written."""
    end = 0
    for word in words(text)[:count]:
        end = text.index(word, end) + len(word)
    return text[:end]


def _words(text: str) -> set[str]:
    return {word.strip(".,;:!?\"'()。，！？").casefold() for word in words(text)} - {""}


_SYSTEMS: dict[type, Callable[[Any, Records, Records, Records], Iterator[Baseline]]] = {
    Classification: _labels,
    Regression: _numbers,
    Tagging: _entities,
    SpanAnswering: _answers,
    TextToText: _texts,
}
