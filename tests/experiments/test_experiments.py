"""Every experiment file loads, means what its paper says, and survives JSON."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments.__main__ import main, rows
from model import tree
from model.transformer import Decoder
from train.command_line import papers, variants
from train.config import Experiment

ALL = {f"{paper}:{name}": f for paper, path in papers().items() for name, f in variants(path).items()}

PUBLISHED = {
    "gpt2:small": 124_439_808,
    "gpt2:medium": 354_823_168,
    "gpt2:large": 774_030_080,
    "gpt2:xl": 1_557_611_200,
    "llama:1b": 1_235_814_400,
}


@pytest.mark.parametrize("name", ALL)
def test_every_variant_is_valid_and_equal_after_json(name):
    experiment = ALL[name]()
    again = Experiment.model_validate_json(experiment.model_dump_json())  # also checks what model_copy did not
    assert again == experiment
    assert experiment.name in (name, name.split(":")[0])
    assert ALL[name].__doc__


@pytest.mark.parametrize("name, parameters", PUBLISHED.items())
def test_full_sizes_have_the_published_number_of_parameters(name, parameters):
    model = Decoder(ALL[name]().model)
    assert tree.count(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))) == parameters


def test_list_prints_every_variant_as_table_and_as_json(capsys):
    assert main(["list"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ALL) and "124,439,808" in table
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == json.loads(json.dumps(rows()))
    assert {row["variant"] for row in listed} == set(ALL)
