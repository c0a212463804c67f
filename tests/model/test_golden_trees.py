"""Golden parameter trees: every published model at its full size, traced abstractly, line by line.

A line of `golden/NAME.txt` is a parameter's path, shape, type, names of dims, size, initializer, and whether AdamW
decays it by default. After an intended change, look at the difference that this leaves behind:

    python tests/model/test_golden_trees.py          # writes all files anew; no test does
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import pytest

from model import tree
from model.config import TransformerConfig
from model.pretrained import family_of
from model.transformer import ReplacedTokenDetector, initialize, transformer
from train.config import AdamW

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Published:
    """A model by its published config.json, where that differs from its family's defaults.

    count: of the official class's parameters, plus what this tree has and the class does not count.
    rounded: the count that the paper (or, without one, the model's card) states, in millions.
    tensors: names by which the reader tells the heads.
    """

    model_type: str
    count: int
    rounded: float
    official: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    build: Callable[[TransformerConfig], nn.Module] = transformer

    def model(self) -> nn.Module:
        return self.build(family_of(self.model_type).to_config(self.official, set(self.tensors)))


def shape(layers: int, width: int, mlp: int, heads: int, kv_heads: int | None = None, **fields: Any) -> dict[str, Any]:
    """The sizes, under the names that most families give them."""
    return dict(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        **fields,
    )


BERT = dict(vocab_size=30522, max_position_embeddings=512, type_vocab_size=2)
BERT_TENSORS = ("bert.pooler.dense.weight", "cls.predictions.bias", "cls.seq_relationship.weight")
ALBERT = dict(vocab_size=30000, max_position_embeddings=512, type_vocab_size=2, embedding_size=128)
ALBERT_TENSORS = ("albert.pooler.weight", "predictions.bias", "sop_classifier.classifier.weight")
DETECTION = ("discriminator_predictions.dense.weight",)
BIAS = ("final_logits_bias",)


def gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    return dict(vocab_size=50257, n_positions=1024, n_layer=layers, n_embd=width, n_head=heads)


def t5(layers: int, width: int, mlp: int, heads: int, head_dim: int = 64, **fields: Any) -> dict[str, Any]:
    sizes = dict(num_layers=layers, d_model=width, d_ff=mlp, num_heads=heads, d_kv=head_dim)
    return sizes | dict(vocab_size=32128) | fields


def bart(layers: int, width: int, mlp: int, heads: int, **fields: Any) -> dict[str, Any]:
    one = dict(layers=layers, attention_heads=heads, ffn_dim=mlp)
    both = {f"{stack}_{name}": value for stack in ("encoder", "decoder") for name, value in one.items()}
    return dict(d_model=width) | both | fields


def detector(fraction: float) -> Callable[[TransformerConfig], nn.Module]:
    return lambda config: ReplacedTokenDetector(config, fraction)


V1_1 = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
UNTIED = ("lm_head.weight",)

PUBLISHED = {
    # Encoders -----------------------------------------------------------------------------------------------
    "bert_base": Published("bert", 110_106_428, 110, BERT | shape(12, 768, 3072, 12), BERT_TENSORS),
    "bert_large": Published("bert", 336_226_108, 340, BERT | shape(24, 1024, 4096, 16), BERT_TENSORS),
    "minilm_l6": Published(  # sentence-transformers/all-MiniLM-L6-v2
        "bert", 22_713_216, 22.7, BERT | shape(6, 384, 1536, 12), ("bert.pooler.dense.weight",)
    ),
    "roberta_base": Published(
        "roberta",
        124_697_433,
        125,
        dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1) | shape(12, 768, 3072, 12),
        ("lm_head.bias",),
    ),
    "distilbert_base": Published(
        "distilbert",
        66_985_530,
        66,
        dict(vocab_size=30522, dim=768, hidden_dim=3072, n_layers=6, n_heads=12, max_position_embeddings=512),
        ("vocab_projector.bias",),
    ),
    # 11,683,584 with the pooler; then the heads of both objectives.
    "albert_base": Published(
        "albert",
        11_683_584 + 768 * 128 + 3 * 128 + 30_000 + 2 * 769,
        12,
        ALBERT | shape(12, 768, 3072, 12),
        ALBERT_TENSORS,
    ),  # fmt: skip
    # The second version, which is smaller than the paper's 235M.
    "albert_xxlarge": Published(
        "albert",
        222_595_584 + 4096 * 128 + 3 * 128 + 30_000 + 2 * 4097,
        223,
        ALBERT | shape(12, 4096, 16384, 64),
        ALBERT_TENSORS,
    ),  # fmt: skip
    # The discriminator, and a generator on its embeddings: projection, blocks, masked-LM head.
    "electra_small": Published(
        "electra",
        13_549_057 + 8_256 + 599_808 + 39_098,
        14,
        BERT | shape(12, 256, 1024, 4, embedding_size=128),
        DETECTION,
        detector(1 / 4),
    ),
    "electra_base": Published(
        "electra",
        109_483_009 + 196_864 + 9_477_120 + 229_434,
        110 + 10,
        BERT | shape(12, 768, 3072, 12, embedding_size=768),
        DETECTION,
        detector(1 / 3),
    ),
    # Decoders -----------------------------------------------------------------------------------------------
    "gpt2_small": Published("gpt2", 124_439_808, 124, gpt2(12, 768, 12)),
    "gpt2_medium": Published("gpt2", 354_823_168, 355, gpt2(24, 1024, 16)),
    "gpt2_large": Published("gpt2", 774_030_080, 774, gpt2(36, 1280, 20)),
    "gpt2_xl": Published("gpt2", 1_557_611_200, 1558, gpt2(48, 1600, 25)),
    "llama2_7b": Published(
        "llama", 6_738_415_616, 6740, shape(32, 4096, 11008, 32, vocab_size=32000, max_position_embeddings=4096)
    ),
    "llama3_8b": Published(
        "llama",
        8_030_261_248,
        8030,
        shape(32, 4096, 14336, 32, 8, vocab_size=128256, rope_theta=500_000.0, max_position_embeddings=8192),
    ),
    "mistral_7b": Published("mistral", 7_241_732_096, 7240, shape(32, 4096, 14336, 32, 8, vocab_size=32000)),
    "mixtral_8x7b": Published("mixtral", 46_702_792_704, 46_700, shape(32, 4096, 14336, 32, 8, vocab_size=32000)),
    "qwen2_0_5b": Published(
        "qwen2",
        494_032_768,
        494,
        shape(24, 896, 4864, 14, 2, vocab_size=151936, rope_theta=1e6, tie_word_embeddings=True),
    ),
    "qwen2_7b": Published(
        "qwen2", 7_615_616_512, 7620, shape(28, 3584, 18944, 28, 4, vocab_size=152064, rope_theta=1e6)
    ),
    "qwen3_8b": Published(
        "qwen3",
        8_190_735_360,
        8190,
        shape(36, 4096, 12288, 32, 8, vocab_size=151936, rope_theta=1e6, max_position_embeddings=40960),
    ),
    "gemma_7b": Published("gemma", 8_537_680_896, 8540, shape(28, 3072, 24576, 16, vocab_size=256000)),
    "gemma2_9b": Published("gemma2", 9_241_705_984, 9240, shape(42, 3584, 14336, 16, 8, vocab_size=256000)),
    # 12,187,325,040 with the vision tower (416,866,032) and its projection to 3840 (1152 * 3840 + 1152).
    "gemma3_12b": Published(
        "gemma3_text",
        12_187_325_040 - 416_866_032 - 1152 * 3841,
        11_770,
        shape(
            48, 3840, 15360, 16, 8, vocab_size=262208, sliding_window=1024, rope_scaling=dict(type="linear", factor=8.0)
        ),
    ),
    # Encoder–decoders ---------------------------------------------------------------------------------------
    "t5_small": Published("t5", 60_506_624, 60, t5(6, 512, 2048, 8)),
    "t5_base": Published("t5", 222_903_552, 220, t5(12, 768, 3072, 12)),
    "t5_large": Published("t5", 737_668_096, 770, t5(24, 1024, 4096, 16)),
    "t5_3b": Published("t5", 2_851_598_336, 2800, t5(24, 1024, 16384, 32, 128)),
    "t5_11b": Published("t5", 11_307_321_344, 11_000, t5(24, 1024, 65536, 128, 128)),
    "t5_v1_1_small": Published("t5", 76_961_152, 77, t5(8, 512, 1024, 6, **V1_1), UNTIED),
    "t5_v1_1_base": Published("t5", 247_577_856, 250, t5(12, 768, 2048, 12, **V1_1), UNTIED),
    "t5_v1_1_xl": Published("t5", 2_849_757_184, 3000, t5(24, 2048, 5120, 32, **V1_1), UNTIED),
    "mt5_small": Published("mt5", 300_176_768, 300, t5(8, 512, 1024, 6, vocab_size=250112, **V1_1), UNTIED),
    # The class counts no bias of the logits, which is a buffer there.
    "bart_base": Published("bart", 139_420_416 + 50_265, 140, bart(6, 768, 3072, 12, vocab_size=50265), BIAS),
    "bart_large": Published("bart", 406_291_456 + 50_265, 400, bart(12, 1024, 4096, 16, vocab_size=50265), BIAS),
    # 570,797,056 with two tables of sinusoids.
    "pegasus_large": Published(
        "pegasus",
        570_797_056 - 2 * 1024 * 1024 + 96_103,
        568,
        bart(16, 1024, 4096, 16, vocab_size=96103, activation_function="relu", scale_embedding=True),
        BIAS,
    ),
    # opus-mt-en-de: 74,410,496 with two tables of sinusoids.
    "marian_en_de": Published(
        "marian",
        74_410_496 - 2 * 512 * 512 + 58_101,
        74,
        bart(
            6,
            512,
            2048,
            8,
            vocab_size=58101,
            max_position_embeddings=512,
            activation_function="swish",
            scale_embedding=True,
        ),
        BIAS,
    ),  # fmt: skip
}


def traced(model: nn.Module) -> tuple[Any, dict[str, str]]:
    """Abstract parameters in boxes, and the initializer of each by path: `normal 0.02`, `zeros`."""
    found: dict[str, str] = {}
    param = nn.Module.param

    def recording(self: nn.Module, name: str, init: Callable, *args: Any, **named: Any) -> Any:
        # What makes the numbers, not what is told of it.
        init_fn = inspect.getclosurevars(inspect.unwrap(init)).nonlocals["initializer"]
        stddev = inspect.getclosurevars(init_fn).nonlocals.get("stddev")
        kind = init_fn.__qualname__.split(".")[0]
        found["/".join((*self.path, name))] = kind if stddev is None else f"{kind} {stddev:.6g}"
        return param(self, name, init, *args, **named)

    with mock.patch.object(nn.Module, "param", recording):
        return jax.eval_shape(lambda: initialize(model, jax.random.key(0))), found


def golden(boxed: Any, initializers: dict[str, str]) -> str:
    """The text of a golden file."""
    params = tree.unbox(boxed)
    exempt = tree.named_leaves(tree.matches(params, AdamW().no_decay))
    *lines, total = tree.table(boxed).splitlines()
    marks = [f"  {initializers[name]:<25} {'' if exempt[name] else 'decays'}" for name in tree.named_leaves(params)]
    return "\n".join(line.rstrip() for line in [*map(str.__add__, lines, marks), total]) + "\n"


@pytest.mark.parametrize("name", PUBLISHED)
def test_tree(name):
    published = PUBLISHED[name]
    boxed, initializers = traced(published.model())
    boxes = tree.named_leaves(boxed, is_leaf=tree.is_box)
    assert {path: box.initializer for path, box in boxes.items()} == initializers
    assert golden(boxed, initializers) == (GOLDEN / f"{name}.txt").read_text("utf-8")
    assert tree.count(boxed) == published.count
    assert published.count == pytest.approx(published.rounded * 1e6, rel=0.06)


def test_no_golden_file_without_a_model():
    assert {path.stem for path in GOLDEN.iterdir()} == set(PUBLISHED)


def record() -> None:
    """Write all golden files anew."""
    GOLDEN.mkdir(exist_ok=True)
    for name, published in PUBLISHED.items():
        boxed, initializers = traced(published.model())
        (GOLDEN / f"{name}.txt").write_text(golden(boxed, initializers), "utf-8")
        print(
            name, f"{tree.count(boxed):,}", "" if tree.count(boxed) == published.count else f"not {published.count:,}"
        )


if __name__ == "__main__":
    record()
