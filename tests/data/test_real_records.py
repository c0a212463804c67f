"""Datasets as they were published are read as they stand, by a source's config alone."""

import pytest

from data.config import DataConfig
from data.examples import split_records
from data.tagging import spans_from_tags
from data.task_config import Classification, Dialogue, Records, Regression, SpanAnswering, Tagging, TextToText

BINARY = Classification(labels=("0", "1"))
TOPICS = Classification(labels=("0", "1", "2", "3"), names=("World", "Sports", "Business", "Sci/Tech"))
QUESTIONS = Classification(labels=("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"))
MRPC = {"text": "#1 String", "second_text": "#2 String", "label": "Quality"}
PAIR = {"text": "sentence1", "second_text": "sentence2"}
RTE = Classification(labels=("entailment", "not_entailment"))
OCNLI = Classification(labels=("entailment", "neutral", "contradiction"))
STSB = {**PAIR, "label": "score"}
STS_ORIGINAL = ("genre", "file", "year", "number", "label", "text", "second_text")
COLA = ("origin", "label", "mark", "text")
TREC = {"format": "lines", "encoding": "latin-1", "pattern": r"(?P<label>\w+):\S+ (?P<text>.*)"}
AG_TEST = {
    "columns": ("label", "title", "body"),
    "fields": {"text": "{title} {body}"},
    "replace": {"label": {"^1$": "0", "^2$": "1", "^3$": "2", "^4$": "3"}},
}
SPAM = Classification(labels=("ham", "spam"))
TNEWS = Classification(labels=tuple(str(label) for label in range(100, 117)))
SENTIMENT = Classification(labels=("Negative", "Positive"))
POLARITY = Classification(labels=("rt-polarity.neg", "rt-polarity.pos"), names=("negative", "positive"))
CONLL = Tagging(types=("PER", "LOC", "ORG", "MISC"), scheme="conlleval")  # the training file has one B- after O
WEIBO = Tagging(
    scheme="conlleval", types=tuple(f"{kind}.{how}" for kind in ("PER", "ORG", "LOC", "GPE") for how in ("NAM", "NOM"))
)
MSRA = Tagging(types=("PER", "LOC", "ORG"))
RESUME = Tagging(types=("CONT", "EDU", "LOC", "NAME", "ORG", "PRO", "RACE", "TITLE"), scheme="iobes")
LCSTS = {
    "format": "matches",
    "pattern": r"<human_label>[345]</human_label>\s*<summary>(?P<target>[^<]*)</summary>\s*"
    r"<short_text>(?P<source>[^<]*)</short_text>",
}
DIALOGSUM = {"source": "dialogue", "target": ("summary1", "summary2", "summary3")}
GERMAN = {"format": "lines", "fields": {"source": "text", "target": "de"}}
DAILY = {"format": "lines", "fields": {"turns": "text"}}
TWEETS = Classification(labels=("0", "1", "2", "3"), names=("anger", "joy", "optimism", "sadness"))

PUBLISHED = [
    ("sentiment/sst2_glue", "train.tsv", {"fields": {"text": "sentence"}}, BINARY, 67349),
    ("sentiment/sst2_sentences", "test.tsv", {"columns": ("text", "label")}, BINARY, 1821),
    ("sentiment/sst5", "stsa.fine.test", {"format": "lines", "pattern": "(?P<label>.) (?P<text>.*)"}, None, 2210),
    (
        "sentiment/rt_polarity",
        "*.???",
        {"format": "lines", "fields": {"label": "file"}, "encoding": "latin-1"},
        POLARITY,
        10662,
    ),
    ("sentiment/chnsenticorp", "train.tsv", {"fields": {"text": "text_a"}}, BINARY, 9600),
    ("sentiment/tweeteval_emotion", "val_text.txt", {"beside": {"label": "val_labels.txt"}}, TWEETS, 374),
    ("topic/ag_news", "train_subset.csv", {"columns": ("text", "label")}, TOPICS, 4500),
    ("topic/ag_news", "test.csv", AG_TEST, TOPICS, 7600),
    ("topic/thucnews_titles", "dev.txt", {"format": "tsv", "columns": ("text", "label")}, None, 10000),
    ("topic/trec6", "TREC.train", TREC, QUESTIONS, 5452),
    ("spam/sms_spam_collection", "sms.tsv", {"columns": ("label", "text")}, SPAM, 5574),
    ("glue/mrpc", "dev.tsv", {"fields": MRPC}, BINARY, 408),
    ("glue/mrpc", "train.tsv", {"fields": MRPC}, BINARY, 3668),
    ("glue/rte", "train.tsv", {"fields": PAIR}, RTE, 2490),
    ("glue/cola", "train.tsv", {"columns": COLA}, BINARY, 8551),
    ("glue/stsb", "train.tsv", {"fields": STSB}, Regression(), 5749),
    ("glue/stsb", "dev.tsv", {"fields": STSB}, Regression(), 1500),
    ("glue/fewclue_tnews", "train_few_all.json", {"format": "jsonl", "fields": {"text": "sentence"}}, TNEWS, 1185),
    ("glue/fewclue_eprstmt", "train_0.json", {"format": "jsonl", "fields": {"text": "sentence"}}, SENTIMENT, 32),
    ("glue/fewclue_ocnli", "dev_0.json", {"format": "jsonl", "fields": PAIR}, OCNLI, 32),
    ("glue/fewclue_bustm", "test_public.json", {"format": "jsonl", "fields": PAIR}, BINARY, 1772),
    ("ner/conll2003_en", "eng.train", {"format": "conll"}, CONLL, 14041),
    ("ner/conll2003_en", "eng.testb", {"format": "conll"}, CONLL, 3453),
    ("ner/weibo_ner_zh", "*.train", {"format": "conll", "replace": {"tokens": {r"^(.+?)\d+$": r"\1"}}}, WEIBO, 1350),
    ("ner/msra_ner_zh", "msra_test_bio.txt", {"format": "conll"}, MSRA, 3442),
    ("ner/resume_ner_zh", "test.char.bmes", {"format": "conll", "replace": {"tags": {"^M-": "I-"}}}, RESUME, 477),
    ("qa/squad_v1.1_subset", "squad_train_subset.json", {"format": "squad"}, SpanAnswering(), 3939),
    ("qa/xquad_en_zh", "xquad.zh.json", {"format": "squad"}, SpanAnswering(), 1190),
    (
        "summarization/dialogsum",
        "*train6000*",
        {"fields": {"source": "dialogue", "target": "summary"}},
        TextToText(),
        6000,
    ),
    ("summarization/dialogsum", "dialogsum.test.jsonl", {"fields": DIALOGSUM}, TextToText(), 500),
    ("summarization/scitldr_A", "test.jsonl", {}, TextToText(), 618),
    ("summarization/csl_title_zh", "dev.tsv", {"columns": ("task", "source", "target")}, TextToText(), 1000),
    ("summarization/lcsts_part3", "PART_III.txt", LCSTS, TextToText(), 725),
    ("translation/multi30k/raw", "train.en.gz", {**GERMAN, "beside": {"de": "train.de.gz"}}, TextToText(), 29000),
    (
        "translation/tatoeba_cmn_eng",
        "cmn.txt",
        {"format": "tsv", "columns": ("source", "target", "by")},
        TextToText(),
        26388,
    ),
    ("reasoning/gsm8k", "test.jsonl", {"fields": {"source": "question", "target": "answer"}}, TextToText(), 1319),
    ("dialogue/dailydialog_valid_test", "test/dialogues.txt", DAILY, Dialogue(separator="__eou__"), 1000),
    ("dialogue/lccc_toy_zh", "toy_train.txt", DAILY, Dialogue(separator="\t"), 10000),
    ("dialogue/kdconv_dev_zh", "*.json.gz", {"fields": {"turns": "messages.message"}}, Dialogue(), 450),
    ("dialogue/personachat_valid", "*.txt", {"format": "persona_chat"}, Dialogue(), 1000),
]


def records_of(source, task):
    config = DataConfig(train=source, held_out_fraction=0)
    return split_records(config, "train", task, lambda line: None)


@pytest.mark.parametrize(("folder", "name", "options", "task", "count"), PUBLISHED)
def test_a_published_dataset_is_read_whole(shared_dataset, folder, name, options, task, count):
    task = task or Classification(labels=tuple(map(str, range(10))))
    source = Records(path=str(shared_dataset(folder) / name), **options)
    records = records_of(source, task)
    assert len(records) == count


@pytest.mark.parametrize(
    ("folder", "entities"), [("weibo_ner_zh", 1885 + 10), ("msra_ner_zh", 6190), ("resume_ner_zh", 1630)]
)
def test_the_entities_are_as_many_as_published(shared_dataset, folder, entities):
    # In Weibo ten begin with I-, which conlleval reads as entities, too.
    name, options, task = next(each[1:4] for each in PUBLISHED if each[0] == f"ner/{folder}")
    source = Records(path=str(shared_dataset(f"ner/{folder}") / name), **options)
    records = records_of(source, task)
    assert sum(len(spans_from_tags(record.fields["tags"], "iob2")) for record in records) == entities
    words = {token for record in records for token in record.fields["tokens"]}
    assert folder == "resume_ner_zh" or not any(len(word) > 1 and word[-1].isdigit() for word in words)
