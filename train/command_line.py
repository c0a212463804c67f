"""From what a user types to a valid `Experiment`, or to one screen that lists every mistake. Imports no JAX."""

from __future__ import annotations

import dataclasses
import difflib
import glob
import importlib.util
import json
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel, ValidationError

from data.sources import DataError
from train.config import Experiment, UserError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake into sentences on stderr and exit code 2; anything else stays a traceback."""
    try:
        yield
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        sys.stderr.close()
        sys.exit(1)


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing when no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


# Experiments and their variants -----------------------------------------------------------------------------------


def papers() -> dict[str, Path]:
    """Every file of experiments/ by name."""
    return {path.stem: path for path in sorted(EXPERIMENTS.glob("*.py")) if not path.stem.startswith("_")}


def variants(path: Path) -> dict[str, Callable[[], Experiment]]:
    """The functions of an experiment file that are annotated to return an `Experiment`, in file order.

    A name that Python does not allow gets an underscore in front: `def _1b()` is the variant `1b`. Any other
    name that begins with an underscore is private.
    """
    module = _module(path)
    own = (f for f in vars(module).values() if isinstance(f, types.FunctionType) and f.__module__ == module.__name__)
    returning = {f.__name__: f for f in own if typing.get_type_hints(f).get("return") is Experiment}
    public = {name.removeprefix("_") if name[1:2].isdigit() else name: f for name, f in returning.items()}
    return {name: f for name, f in public.items() if not name.startswith("_")}


def _module(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiments.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    except ValidationError as error:
        raise UserError(*(f"{path}: {p}" for p in _problems(error))) from error
    return module


def load_loss(target: str) -> Callable[[Any, Any], Any]:
    """The function that `loss.function` names, FILE.py:NAME. Raises UserError where there is none."""
    file, _, name = target.rpartition(":")
    if not Path(file).is_file():
        raise UserError(f"loss.function: there is no file {file}")
    functions = {k: f for k, f in vars(_module(Path(file))).items() if callable(f)}  # a jitted one is no plain function
    if name not in functions:
        raise UserError(f"loss.function: {file} has no function '{name}'.{nearest(name, functions)}")
    return functions[name]


def load_target(target: str) -> Experiment:
    """`FILE:VARIANT` (a name in experiments/ or a path to a .py), or a run's config.json (or its folder)."""
    if (path := Path(target)).is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        return read_config(path)
    file, _, variant = target.partition(":")
    known = papers()
    path = Path(file) if file.endswith(".py") else known.get(file)
    if path is None or not path.is_file():
        raise UserError(f"there is no experiment '{file}'.{nearest(file, known)} Experiments: {', '.join(known)}")
    functions = variants(path)
    if not variant and len(functions) == 1:
        variant = next(iter(functions))
    if variant not in functions:
        what = f"{file} has no variant '{variant}'.{nearest(variant, functions)}" if variant else f"{file}: which one?"
        raise UserError(f"{what} Variants: {', '.join(f'{file}:{name}' for name in functions)}")
    try:
        return functions[variant]()
    except ValidationError as error:
        raise UserError(*(f"{path}, {variant}(): {p}" for p in _problems(error))) from error


def read_config(path: Path) -> Experiment:
    """A resolved experiment from JSON."""
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    experiment, problems = _validate(raw, Experiment())
    if problems:
        raise UserError(*(f"{path}: {p}" for p in problems))
    return experiment


# Overrides --------------------------------------------------------------------------------------------------------


def parse(argv: list[str], prog: str = "python -m train") -> Experiment:
    """The experiment that `TARGET --field.sub value …` names; raises `UserError` with every mistake at once."""
    target = argv[0] if argv and not argv[0].startswith("-") else None
    base = load_target(target) if target else Experiment(name="NAME")
    rest = argv[1:] if target else argv
    flags = _flags(Experiment, base)
    values, unknown = tyro.cli(
        flags,
        args=rest,
        prog=f"{prog} {target or 'FILE:VARIANT'}",
        description=_DESCRIPTION,
        return_unknown_args=True,
    )
    if not target:
        raise UserError(
            "which experiment? Give FILE:VARIANT, for example quickstart; python -m experiments list shows all"
        )
    raw = base.model_dump(mode="json")
    problems = []
    names = [path for path, _ in _leaves(values)]
    for path, text in _leaves(values):
        if text is not None:
            _override(raw, path, text)
    for name, count in Counter(_flag_name(word) for word in rest if word.startswith("--")).items():
        if count > 1:
            problems.append(f"""{name}: is given {count} times; several values are one list, such as '["a", "b"]'""")
    for word in unknown:
        if word.startswith("-"):
            name = _flag_name(word)
            problems.append(f"{name}: there is no such field.{nearest(name, names)}")
    if unknown and not problems:
        problems.append(f"'{unknown[0]}': expected --field value")
    experiment, invalid = _validate(raw, base)
    problems += invalid + _missing_files(raw)
    if problems:
        raise UserError(*problems)
    return experiment


def _flag_name(word: str) -> str:
    return word.lstrip("-").split("=")[0].replace("-", "_")


_DESCRIPTION = (
    "Train an experiment, or continue it. The same command continues a run that was stopped. "
    "Any field can be overridden: --model.num-layers 4 --optimizer.kind lion --data.train my.txt. "
    "--seeds N trains it with N seeds in RUN/seed-N and prints the mean and the spread of their scores."
)


def _members(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models an annotation stands for: one, several for a union, none for a value."""
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _flags(model: type[BaseModel], base: BaseModel | None, others: tuple[type[BaseModel], ...] = ()) -> type:
    """A dataclass of optional strings, nested like the config, from which tyro makes flags and help.

    Every flag is text here: pydantic judges the values, so that all mistakes come out together. A union
    (`optimizer`) shows the fields of all its members; its `kind` chooses.
    """
    fields = {}
    for member in (model, *others):
        for name, info in member.model_fields.items():
            current = getattr(base, name, None)
            if members := _members(info.annotation):
                chosen = type(current) if type(current) in members else members[0]
                rest = tuple(m for m in members if m is not chosen)
                nested = _flags(chosen, current, rest)
                fields.setdefault(name, (nested, dataclasses.field(default_factory=nested)))
            elif name not in fields:
                default = _shown(current) if isinstance(base, member) else f"only for {_kind(member)}"
                choices = " | ".join(_kind(m) for m in (model, *others)) if name == "kind" else ""
                description = info.description or (f"One of {choices}." if choices else "")
                hint = tyro.conf.arg(
                    help=description.replace("%", "%%"),
                    metavar=_metavar(info.annotation),
                    help_behavior_hint=f"({default})" if default.startswith("only") else f"(default: {default})",
                )
                fields[name] = (Annotated[str | None, hint], None)
    return dataclasses.make_dataclass(
        f"{model.__name__}Flags", [(name, kind, default) for name, (kind, default) in fields.items()]
    )


def _kind(member: type[BaseModel]) -> str:
    return member.model_fields["kind"].default if "kind" in member.model_fields else member.__name__


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel) or (isinstance(value, tuple) and value and isinstance(value[0], BaseModel)):
        parts = value if isinstance(value, tuple) else (value,)
        value = [part.model_dump(mode="json") for part in parts]
    if value is None:
        return "none"
    return str(value) if isinstance(value, (str, int, float)) and value != "" else json.dumps(value)


def _metavar(annotation: Any) -> str:
    if typing.get_origin(annotation) is Annotated:
        return _metavar(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return "|".join(_metavar(part) for part in typing.get_args(annotation))
    names = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false", type(None): "none"}
    return names.get(annotation, "JSON")


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _override(raw: dict, path: str, text: str) -> None:
    """Put `text` at the dotted `path` of `raw`; a new `kind` keeps only the fields both kinds have."""
    *parents, name = path.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
    if text in ("none", "null"):
        value = None
    elif text[:1] in "[{":
        try:
            value = json.loads(text)
        except ValueError:
            value = text
    else:
        value = text
    if isinstance(value, dict) and isinstance(node.get(name), dict):
        value = node[name] | value
    if name == "kind" and value != node.get("kind"):
        annotation = Experiment
        for parent in parents:
            options = _members(annotation.model_fields[parent].annotation) if annotation else []
            annotation = options[0] if options else None
        for option in options:
            if _kind(option) == value:
                for key in set(node) - set(option.model_fields):
                    del node[key]
    node[name] = value


# Validation -------------------------------------------------------------------------------------------------------


def _validate(raw: dict, fallback: Experiment) -> tuple[Experiment | None, list[str]]:
    """The experiment, or every problem in `raw`.

    A broken field hides checks that need it, so broken fields are replaced by `fallback`'s and the rest is
    checked again until nothing new turns up.
    """
    problems: list[str] = []
    defaults = fallback.model_dump(mode="json")
    for _ in range(10):
        try:
            experiment = Experiment.model_validate(raw)
            return (None if problems else experiment), problems
        except ValidationError as error:
            problems += [p for p in _problems(error) if p not in problems]
            raw = json.loads(json.dumps(raw))
            for detail in error.errors():
                _repair(raw, defaults, detail)
    return None, problems


def _repair(raw: dict, defaults: dict, detail: dict) -> None:
    """Replace the place of one validation error by its default, or drop it if it should not exist."""
    path = [part for part in _path(detail["loc"], raw)]
    if not path:
        raw.clear()
        raw.update(defaults)
        return
    node, default = raw, defaults
    for part in path[:-1]:
        if not isinstance(node, (dict, list)):
            return
        node = node[part] if isinstance(node, list) or part in node else {}
        default = default.get(part) if isinstance(default, dict) else None
    if not isinstance(node, dict):
        raw[path[0]] = defaults.get(path[0])
    elif detail["type"] == "extra_forbidden":
        node.pop(path[-1], None)
    elif isinstance(default, dict) and path[-1] in default:
        node[path[-1]] = default[path[-1]]
    else:
        raw[path[0]] = defaults.get(path[0])


def _path(location: tuple, raw: Any) -> Iterator[str | int]:
    """A pydantic error location without the tags of the unions it passed through."""
    node = raw
    for part in location:
        if isinstance(node, dict) and part not in node and part == node.get("kind"):
            continue
        yield part
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            node = None


def _problems(error: ValidationError) -> list[str]:
    """One sentence per mistake, led by its dotted path; unknown fields with the nearest known name."""
    sentences = []
    for detail in error.errors(include_url=False):
        location = [str(part) for part in detail["loc"]]
        path = ".".join(location) or error.title
        if detail["type"] == "extra_forbidden":
            sentences.append(f"{path}: there is no such field.{nearest(location[-1], _siblings(location))}")
        elif detail["type"] == "value_error":
            sentences += [f"{path}: {part}" for part in str(detail["ctx"]["error"]).split("\n")]
        elif detail["type"] == "union_tag_invalid":
            context = detail["ctx"]
            kinds = context["expected_tags"].replace("'", "").split(", ")
            sentences.append(
                f"{path}.kind: '{context['tag']}' is none of {', '.join(kinds)}.{nearest(context['tag'], kinds)}"
            )
        else:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            sentences.append(f"{path}: {message}, got {json.dumps(detail['input'], default=str)[:80]}")
    return sentences


def _siblings(location: list[str]) -> list[str]:
    """Names that could stand where the last part of `location` stands."""
    options: list[type[BaseModel]] = [Experiment]
    for part in location[:-1]:
        fields = [option.model_fields[part] for option in options if part in option.model_fields]
        if fields:
            options = [m for field in fields for m in _members(field.annotation)]
        elif tagged := [option for option in options if _kind(option) == part]:
            options = tagged
    return [name for option in options for name in option.model_fields]


def _missing_files(raw: dict) -> list[str]:
    """Sources, tokenizers and runs that are named but not there."""
    data = raw.get("data") if isinstance(raw.get("data"), dict) else {}
    wanted = []
    for part in ("train", "validation", "test"):
        sources = data.get(part)
        for i, source in enumerate([sources] if isinstance(sources, (str, dict)) else sources or ()):
            if isinstance(source, str) and source != "python_docs":
                wanted.append((f"data.{part}.{i}.path", source))
            elif isinstance(source, dict) and source.get("kind", "files") in ("files", "records"):
                wanted.append((f"data.{part}.{i}.path", source.get("path")))
    if isinstance(data.get("tokenizer"), dict):
        wanted.append(("data.tokenizer.path", data["tokenizer"].get("path")))
    wanted.append(("init_from", raw.get("init_from")))
    problems = []
    for path, file in wanted:
        if isinstance(file, str) and not Path(file).exists() and not glob.glob(file, recursive=True):
            names = [p.name for p in Path(file).parent.glob("*")] if Path(file).parent.is_dir() else []
            problems.append(f"{path}: there is no file {file}.{nearest(Path(file).name, names)}")
    if any(problem.startswith("data.t") for problem in problems):
        problems.append("name your text with --data.train PATH, or the folder of all datasets with QUIRE_DATA=FOLDER")
    return problems
