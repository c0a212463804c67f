"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019), with all their heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from model.config import TransformerConfig
from model.pretrained.names import (
    LINEAR,
    TABLE,
    VECTOR,
    Family,
    PretrainedError,
    Rule,
    activation,
    linear,
    norm,
    official_activation,
    require,
)

# Heads → the end of the name of the official class that has them.
CLASSES = {
    (): "Model",
    ("lm",): "ForMaskedLM",
    ("lm", "sentence_pair"): "ForPreTraining",
    ("sentence_pair",): "ForNextSentencePrediction",
    ("sequence",): "ForSequenceClassification",
    ("choice",): "ForMultipleChoice",
    ("tokens",): "ForTokenClassification",
    ("span",): "ForQuestionAnswering",
    ("detection",): "ForPreTraining",
}
POOLED = {"sentence_pair", "sequence", "choice"}
IGNORED = (r"(.*\.)?embeddings\.(position_ids|token_type_ids)",)

# What the official classes assume of fields that a config.json leaves out.
DEFAULTS = dict(
    type_vocab_size=2,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    initializer_range=0.02,
    tie_word_embeddings=True,
)


def class_name(name: str, heads: tuple[str, ...]) -> str:
    """The official class of a model with these heads."""
    if heads not in CLASSES:
        raise PretrainedError(f"heads={list(heads)} have no official class together")
    return name + CLASSES[heads]


def label_heads(official: Mapping[str, Any]) -> tuple[str, ...]:
    """What a `classifier` tensor labels, which only the class's name tells."""
    kind = next(iter(official.get("architectures") or ()), "")
    for head in ("choice", "tokens", "sequence"):
        if kind.endswith(CLASSES[(head,)]):
            return (head,)
    raise PretrainedError(f"config.json: architectures={[kind]} does not say what the tensor classifier labels")


def num_labels(official: Mapping[str, Any]) -> int:
    """Labels of the sequence and tokens heads."""
    return len(official.get("id2label") or ()) or official.get("num_labels", 2)


def label_fields(config: TransformerConfig) -> dict[str, Any]:
    """Names of the labels for config.json, where a head has some."""
    if not set(config.heads) & {"sequence", "tokens"}:
        return {}
    labels = [f"LABEL_{i}" for i in range(config.num_labels)]
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def labelling(config: TransformerConfig) -> str:
    """The head that a `classifier` tensor belongs to; "none" is no leaf of our tree."""
    return next((head for head in ("sequence", "choice", "tokens") if head in config.heads), "none")


def encoder_fields(official: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our config that BERT and its successors call alike."""
    require(official, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    require(official, pruned_heads=({}, None))
    official = DEFAULTS | dict(official)
    return dict(
        stack="encoder",
        vocab_size=official["vocab_size"],
        num_layers=official["num_hidden_layers"],
        embed_dim=official["hidden_size"],
        num_heads=official["num_attention_heads"],
        mlp_dim=official["intermediate_size"],
        max_length=official["max_position_embeddings"],
        num_sentence_types=official["type_vocab_size"],
        activation=activation(official["hidden_act"]),
        positions="learned",
        embedding_norm=True,
        norm_placement="post",
        norm_epsilon=official["layer_norm_eps"],
        dropout_rate=official["hidden_dropout_prob"],
        attention_dropout_rate=official["attention_probs_dropout_prob"],
        init_stddev=official["initializer_range"],
        position_init_stddev=official["initializer_range"],
        scale_residual_init=False,
        tie_embeddings=official["tie_word_embeddings"],
        head_transform=True,
        head_bias=True,
        num_labels=num_labels(official),
    )


def official_encoder_fields(config: TransformerConfig) -> dict[str, Any]:
    """The same, the other way."""
    return dict(
        vocab_size=config.vocab_size,
        num_hidden_layers=config.num_layers,
        hidden_size=config.embed_dim,
        num_attention_heads=config.num_heads,
        intermediate_size=config.size_of_mlp,
        max_position_embeddings=config.max_length,
        type_vocab_size=config.num_sentence_types,
        hidden_act=official_activation(config.activation),
        layer_norm_eps=config.norm_epsilon,
        hidden_dropout_prob=config.dropout_rate,
        attention_probs_dropout_prob=config.attention_dropout_rate,
        initializer_range=config.init_stddev,
        tie_word_embeddings=config.tie_embeddings,
        **label_fields(config),
    )


def embedding_rules(prefix: str) -> tuple[Rule, ...]:
    """The tables of BERT and its successors."""
    return (
        Rule(f"{prefix}embeddings.word_embeddings.weight", "token_embedding/embedding", TABLE),
        Rule(f"{prefix}embeddings.position_embeddings.weight", "encoder/position_embedding/embedding", TABLE),
        Rule(f"{prefix}embeddings.token_type_embeddings.weight", "encoder/sentence_embedding/embedding", TABLE),
        *norm(f"{prefix}embeddings.LayerNorm", "encoder/embedding_norm"),
    )


def layer_rules(prefix: str) -> tuple[Rule, ...]:
    """The blocks of BERT and its successors; `prefix` ends before the layer's number."""
    layer, ours = f"{prefix}encoder.layer.{{layer}}", "encoder/layers"
    return (
        *linear(f"{layer}.attention.self.query", f"{ours}/self_attention/query"),
        *linear(f"{layer}.attention.self.key", f"{ours}/self_attention/key"),
        *linear(f"{layer}.attention.self.value", f"{ours}/self_attention/value"),
        *linear(f"{layer}.attention.output.dense", f"{ours}/self_attention/out"),
        *norm(f"{layer}.attention.output.LayerNorm", f"{ours}/self_attention_norm"),
        *linear(f"{layer}.intermediate.dense", f"{ours}/feed_forward/up"),
        *linear(f"{layer}.output.dense", f"{ours}/feed_forward/down"),
        *norm(f"{layer}.output.LayerNorm", f"{ours}/feed_forward_norm"),
    )


def vocabulary_rules(head: str, transform: str, scale: str, config: TransformerConfig) -> tuple[Rule, ...]:
    """The masked-LM head. Without tying, the official `head` has two biases, of which only its decoder's is used."""
    unused = () if config.tie_embeddings else (Rule(f"{head}.decoder.bias", "head/bias", VECTOR),)
    return (
        Rule(f"{head}.bias", "head/bias", VECTOR),
        *unused,
        *linear(transform, "head/transform"),
        *norm(scale, "head/norm"),
        Rule(f"{head}.decoder.weight", "head/kernel", LINEAR),
    )


def vocabulary_aliases(head: str, table: str, config: TransformerConfig) -> dict[str, str]:
    """The second names of a tied masked-LM head."""
    return {f"{head}.decoder.bias": f"{head}.bias", f"{head}.decoder.weight": table} if config.tie_embeddings else {}


def require_gelu(fields: Mapping[str, Any], heads: tuple[str, ...]) -> None:
    """RoBERTa's and ELECTRA's masked-LM heads have gelu whatever the blocks have; ours has what the blocks have."""
    if "lm" in heads and fields["activation"] != "gelu":
        raise PretrainedError(f"a masked-LM head with gelu after blocks with {fields['activation']} is not supported")


# BERT ------------------------------------------------------------------------------------------------------


def bert_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    heads = ("lm",) * ("cls.predictions.bias" in names) + ("sentence_pair",) * ("cls.seq_relationship.weight" in names)
    heads += ("span",) * ("qa_outputs.weight" in names)
    if "classifier.weight" in names:
        heads += label_heads(official)
    has_pooler = "bert.pooler.dense.weight" in names or POOLED & set(heads)
    return TransformerConfig(**encoder_fields(official), heads=heads, pooler="tanh" if has_pooler else "none")


def bert_from_config(config: TransformerConfig) -> dict[str, Any]:
    return dict(model_type="bert", architectures=[class_name("Bert", config.heads)], **official_encoder_fields(config))


def bert_rules(config: TransformerConfig) -> tuple[Rule, ...]:
    predictions = "cls.predictions"
    return (
        *embedding_rules("bert."),
        *layer_rules("bert."),
        *linear("bert.pooler.dense", "heads/pooler"),
        *vocabulary_rules(predictions, f"{predictions}.transform.dense", f"{predictions}.transform.LayerNorm", config),
        *linear("cls.seq_relationship", "heads/sentence_pair"),
        *linear("classifier", f"heads/{labelling(config)}"),
        *linear("qa_outputs", "heads/span"),
    )


def bert_aliases(config: TransformerConfig) -> dict[str, str]:
    return vocabulary_aliases("cls.predictions", "bert.embeddings.word_embeddings.weight", config)


# RoBERTa ---------------------------------------------------------------------------------------------------


def roberta_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    fields = encoder_fields(official)
    heads = ("lm",) * ("lm_head.bias" in names) + ("span",) * ("qa_outputs.weight" in names)
    if "classifier.weight" in names:
        heads += label_heads(official)
    if "classifier.dense.weight" in names:
        heads += ("sequence",)
    require_gelu(fields, heads)
    has_pooler = "roberta.pooler.dense.weight" in names or POOLED & set(heads)
    # The first token stands in the row after that of padding.
    offset = official.get("pad_token_id", 1) + 1
    return TransformerConfig(
        **fields | dict(max_length=fields["max_length"] - offset),
        position_offset=offset,
        heads=heads,
        pooler="tanh" if has_pooler else "none",
    )


def roberta_from_config(config: TransformerConfig) -> dict[str, Any]:
    rows = config.max_length + config.position_offset
    return dict(
        model_type="roberta",
        architectures=[class_name("Roberta", config.heads)],
        **official_encoder_fields(config) | dict(max_position_embeddings=rows),
        pad_token_id=config.position_offset - 1,
    )


def roberta_rules(config: TransformerConfig) -> tuple[Rule, ...]:
    is_sequence = "sequence" in config.heads
    return (
        *embedding_rules("roberta."),
        *layer_rules("roberta."),
        *linear("classifier.dense" if is_sequence else "roberta.pooler.dense", "heads/pooler"),
        *vocabulary_rules("lm_head", "lm_head.dense", "lm_head.layer_norm", config),
        *linear("classifier.out_proj" if is_sequence else "classifier", f"heads/{labelling(config)}"),
        *linear("qa_outputs", "heads/span"),
    )


def roberta_aliases(config: TransformerConfig) -> dict[str, str]:
    return vocabulary_aliases("lm_head", "roberta.embeddings.word_embeddings.weight", config)


def encoder_family(model_type: str, to_config, from_config, rules, aliases) -> Family:
    """A family whose tensors begin with its name and whose bare model has no head."""
    return Family(
        model_type=model_type,
        to_config=to_config,
        from_config=from_config,
        rules=rules,
        prefix=f"{model_type}.",
        is_bare=lambda config: config.heads == (),
        aliases=aliases,
        ignored=IGNORED,
    )


FAMILIES = (
    encoder_family("bert", bert_to_config, bert_from_config, bert_rules, bert_aliases),
    encoder_family("roberta", roberta_to_config, roberta_from_config, roberta_rules, roberta_aliases),
)
