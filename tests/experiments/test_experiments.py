"""Every experiment file loads, means what its paper says, and survives JSON."""

import json
from pathlib import Path

import pytest
import tiny

from data.config import MaskedLM
from experiments.__main__ import main
from model.config import TransformerConfig
from train.command_line import papers, variants
from train.config import Experiment, UserError

ALL = {f"{paper}:{name}": f for paper, path in papers().items() for name, f in variants(path).items()}

PUBLISHED = {
    "gpt2:small": 124_439_808,
    "gpt2:medium": 354_823_168,
    "gpt2:large": 774_030_080,
    "gpt2:xl": 1_557_611_200,
    "llama:1b": 1_235_814_400,
    "bert:base": 110_106_428,
    "bert:large": 336_226_108,
    "roberta:base": 124_697_433,
    "albert:base": 11_813_810,
    "t5:small": 60_506_624,
    "t5:base": 222_903_552,
    "t5:large": 737_668_096,
    "t5:v1_1_small": 76_961_152,
    "t5:v1_1_base": 247_577_856,
    "bart:base": 139_420_416 + 50_265,  # the released model's bias of the output is a buffer
    "pegasus:large": 568_699_904 + 96_103,  # the same
}


@pytest.fixture
def imported_encoder(tmp_path, monkeypatch):
    """Stands for the run that fine-tuning starts from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "minilm").mkdir(parents=True)
    encoder = Experiment(model=TransformerConfig(stack="encoder", max_length=512), objective=MaskedLM())
    (tmp_path / "runs" / "minilm" / "config.json").write_text(encoder.model_dump_json())


@pytest.mark.parametrize("name", ALL)
def test_every_variant_is_valid_and_equal_after_json(name, imported_encoder):
    experiment = ALL[name]()
    again = Experiment.model_validate_json(experiment.model_dump_json())  # also checks what model_copy did not
    assert again == experiment
    assert experiment.name in (name, name.split(":")[0])
    assert ALL[name].__doc__


def test_list_prints_every_variant_with_the_published_number_of_parameters(monkeypatch, capsys):
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    listed = {row["variant"]: row for row in found}
    assert set(listed) == set(ALL)
    assert {name: listed[name]["parameters"] for name in PUBLISHED} == PUBLISHED
    monkeypatch.setattr("experiments.__main__.rows", lambda: found)
    assert main(["list"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ALL) and "124,439,808" in table


def test_a_variant_that_starts_from_another_kind_of_model_is_listed_without_its_size(
    imported_encoder, monkeypatch, capsys
):
    Path("runs/minilm/config.json").write_text(Experiment().model_dump_json())
    monkeypatch.setattr("experiments.__main__.papers", lambda: {"glue": papers()["glue"]})
    assert main(["list", "--json"]) == 0
    assert {row["parameters"] for row in json.loads(capsys.readouterr().out)} == {"?"}


def test_without_the_run_to_start_from_the_message_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("glue:sst2", "squad:subset", "entities:conll2003"):
        with pytest.raises(UserError, match="as experiments/glue.py says: python -m .*pretrained import FOLDER runs/m"):
            ALL[name]()


@pytest.mark.parametrize(
    "variant, shown",
    [
        ("tiny", ["inputs: ", "targets: ", " s q u a r e "]),
        ("encoder", ["inputs: <s> ", " <mask> ", "sentence targets: "]),
        ("encoder_decoder", ["encoder inputs: ", " <extra_id_0> ", "decoder inputs: <s> <extra_id_0> ", " </s>"]),
    ],
)
def test_show_prints_what_a_model_learns_from(tmp_path, capsys, variant, shown):
    tiny.write_text(tmp_path)
    assert main(["show", f"{tiny.__file__}:{variant}"]) == 0
    output = capsys.readouterr().out
    assert output.count("--- example") == 3
    assert all(text in output for text in shown)
