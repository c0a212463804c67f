"""`python -m model.pretrained import DIR RUN` and `export RUN DIR`: Hugging Face folders ↔ run directories.

The one place of this package that knows runs and tokenizers; everything else in it knows arrays and names.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.command_line import user_errors
from train.config import UserError

if TYPE_CHECKING:
    from data.tokenizer import Tokenizer
    from model.config import TransformerConfig
    from train.run import Run

FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.spm")
KEPT = ("config.json", "generation_config.json")


def main(argv: list[str]) -> int:
    options = parse(argv)
    with user_errors():
        from model.pretrained import PretrainedError

        try:
            options.run_command(options)
        except PretrainedError as error:
            raise UserError(str(error)) from error
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m model.pretrained", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="import|export")
    to_run = commands.add_parser("import", help="Make a run directory of a published model.")
    to_run.add_argument("folder", metavar="DIR", help="A Hugging Face folder, or a name on the hub: owner/name.")
    to_run.add_argument("run", type=Path, metavar="RUN", help="The run directory to make.")
    to_run.add_argument("--tokenizer", metavar="DIR", help="Take the tokenizer from this folder instead.")
    to_run.add_argument("--dtype", choices=("float32", "bfloat16"), help="Type to compute in; float32 by default.")
    to_run.set_defaults(run_command=import_run)
    to_folder = commands.add_parser("export", help="Make a Hugging Face folder of a run.")
    to_folder.add_argument("run", type=Path, metavar="RUN", help="A run directory.")
    to_folder.add_argument("folder", type=Path, metavar="DIR", help="The folder to make.")
    to_folder.add_argument("--step", default="latest", help="A step, latest, best or average:N.")
    to_folder.add_argument("--family", help="Model type to write, such as gpt2; by default the first that fits.")
    to_folder.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="Type of the written tensors.")
    to_folder.add_argument(
        "--part",
        choices=("discriminator", "generator"),
        default="discriminator",
        help="Which network of a run that learned from replaced tokens.",
    )
    to_folder.set_defaults(run_command=export_run)
    return parser.parse_args(argv)


# Import ----------------------------------------------------------------------------------------------------


def import_run(options: argparse.Namespace) -> None:
    from data import tokenizer as tokenizers
    from model.pretrained import read_model
    from model.tree import count
    from train.run import require_empty, save_run

    require_empty(options.run)
    folder = find_folder(options.folder)
    overrides = {"dtype": options.dtype} if options.dtype else {}
    config, params = read_model(folder, overrides=overrides)
    tokenizer = tokenizers.load(options.tokenizer or folder)
    experiment = _experiment(options.run, config, tokenizer)
    save_run(options.run, experiment, params, tokenizer, [folder / name for name in KEPT if (folder / name).is_file()])
    print(f"{count(params):,} parameters of {folder} are in {options.run}")


def find_folder(name: str) -> Path:
    """The folder, or the snapshot of a model on the hub, downloaded if it is not in the hub's cache."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name):
        raise UserError(f"there is no folder {name}, and it is no name on the hub either (owner/name)")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f"there is no folder {name}; names on the hub need the hf extra: pip install 'quire[hf]'"
        ) from None
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"there is no folder {name}, and the hub does not give a model of that name: {reason}"
        ) from error


def _experiment(run: Path, config: TransformerConfig, tokenizer: Tokenizer) -> Any:
    """What a run of this model would be: its own objective, nothing trained yet."""
    from data.config import CausalLM, DataConfig, MaskedLM, Pretrained, SpanCorruption, TextInfilling
    from train.config import Experiment

    if config.stack == "decoder":
        objective = CausalLM()
    elif config.stack == "encoder":
        objective = MaskedLM()
    else:
        objective = SpanCorruption() if tokenizer.sentinel_ids else TextInfilling()
    data = DataConfig(tokenizer=Pretrained(path=str(run / "tokenizer")), length=min(512, config.max_length))
    return Experiment(name=run.name, run_dir=str(run), model=config, objective=objective, data=data)


# Export ----------------------------------------------------------------------------------------------------


def export_run(options: argparse.Namespace) -> None:
    from data.document import DataError
    from model.pretrained import storage, write_model
    from train.run import load_run

    folder = options.folder
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UserError(f"{folder} is not empty; name another folder")
    step = int(options.step) if options.step.isdigit() else options.step
    run = load_run(options.run, step)
    config, params = _part(run, options.part)
    kept = options.run / "pretrained"
    original = storage.read_json(kept / "config.json") if (kept / "config.json").is_file() else None
    if original and options.family not in (None, original["model_type"]):
        original = None
    dtype = options.dtype or (original or {}).get("dtype", (original or {}).get("torch_dtype"))
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write_model(unfinished, config, params, family=options.family, original=original, dtype=dtype)
        if (kept / "generation_config.json").is_file():
            shutil.copy(kept / "generation_config.json", unfinished)
        try:
            run.tokenizer.write_official(unfinished)
        except DataError as error:
            print(f"note: the folder has no tokenizer: {error}", file=sys.stderr)
        if folder.is_dir():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    model_type = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    print(f"{folder} has step {run.step} of {options.run} as {model_type}")


def _part(run: Run, part: str) -> tuple[TransformerConfig, dict[str, Any]]:
    """The config and parameters to write; of ELECTRA's pair one network, with the shared embeddings."""
    from model.transformer import ReplacedTokenDetector, generator_config

    config, params = run.config.model, run.params
    if not isinstance(run.model, ReplacedTokenDetector):
        return config, params
    if part == "discriminator":
        return config, {name: params[name] for name in ("token_embedding", "encoder", "heads")}
    shared = ("position_embedding", "sentence_embedding", "embedding_norm")
    encoder = {name: params["encoder"][name] for name in shared if name in params["encoder"]} | params["generator"]
    generator = {"token_embedding": params["token_embedding"], "encoder": encoder, "head": params["head"]}
    return generator_config(config, run.config.objective.generator_fraction), generator


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
