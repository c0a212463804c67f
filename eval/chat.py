"""`python -m eval.chat RUN`: talk with a run's model on a terminal, or from a script on stdin."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.dialogue import Turn
from data.document import DataError
from data.storage import write_atomically
from eval.command_line import add_run, add_sampling, print_anything
from eval.text_stream import printable
from train.command_line import nearest, user_errors
from train.config import UserError

if TYPE_CHECKING:
    from model.decoding import Sampling
    from train.run import Run

COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation, but not the system text",
    "/system TEXT": "tell the model what to be; without TEXT: nothing",
    "/set NAME VALUE": "change a setting, such as /set temperature 0.7; without NAME: show them",
    "/undo": "take back your last message and its reply",
    "/save FILE": "write the conversation: as text, or to a .jsonl as a record of the task dialogue",
    "/quit": "leave, as Ctrl-D does; Ctrl-C stops a reply",
    "//…": "a message that begins with a slash",
}
_NO_SYSTEM = "this model answers each message by itself; it reads no system text"
# Setting of a reply beside `Sampling` → its least and greatest value.
_RANGES = {"max_new_tokens": (1, 2**20), "seed": (0, 2**32 - 1)}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.chat",
        description="Talk with a run's model. A run of the task dialogue speaks by roles; another decoder continues "
        '"User: … Assistant:" as plain text; one that learned texts from texts answers each message by itself.',
        allow_abbrev=False,
    )
    add_run(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="Tell the model what to be.")
    add_sampling(parser, temperature=0.7, top_p=0.95)
    parser.set_defaults(seed=0)
    parser.add_argument("--max-new-tokens", type=int, default=200, help="Tokens of a reply; default 200.")
    parser.add_argument(
        "--transcript",
        type=Path,
        metavar="FILE",
        help="Write the conversation to FILE after each reply; see /save.",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    print_anything()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # a message that is not UTF-8 is refused, not fatal
    with user_errors():
        _open(options).run()
    return 0


def _open(options: argparse.Namespace) -> Session:
    if not _is_unicode(options.system):
        raise UserError("--system is not valid Unicode")
    if options.transcript is not None:
        _check_new(options.transcript)

    from model.decoding import Sampling
    from train.run import load_run

    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Sampling)}
    try:
        sampling = Sampling(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UserError(str(error)) from error
    for name in _RANGES:
        _check_range(name, getattr(options, name))
    run = load_run(options.run, options.step)
    session = Session(run, sampling, options.max_new_tokens, options.seed, options.system.strip())
    if options.transcript is not None:
        session.transcript = options.transcript
        session.save(options.transcript)
    return session


def _check_range(name: str, value: int) -> None:
    least, most = _RANGES[name]
    if not least <= value <= most:
        raise UserError(f"{name} must be from {least} to {most}, not {value}")


def _check_new(path: Path) -> None:
    """Raise UserError unless a file can be made at `path` without the loss of another."""
    if "\0" in str(path):
        raise UserError("the name of a file has no NUL character")
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    if exists:
        raise UserError(f"{path} exists; name a new file")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Session:
    """A conversation on a terminal: reads messages and commands until the end of stdin, and prints."""

    def __init__(self, run: Run, sampling: Sampling, max_new_tokens: int, seed: int, system: str):
        from eval.conversation import form

        self._run, self._form = run, form(run)
        if system and self._form == "sources":
            raise UserError(_NO_SYSTEM)
        self.sampling, self.max_new_tokens, self.seed = sampling, max_new_tokens, seed
        self.system, self.turns = system, []
        self.transcript: Path | None = None
        self._num_replies, self._is_stopped = 0, False
        self._saved: set[Path] = set()
        self._console = Console(highlight=False, soft_wrap=True)
        self._is_live = sys.stdin.isatty()
        if self._is_live:
            import readline  # noqa: F401  (gives input() its line editing and history)

    def run(self) -> None:
        """Until the end of stdin or /quit."""
        self._greet()
        while True:
            try:
                line = self._read()
                if line is None or (line := line.strip()) == "/quit":
                    return
                self._answer(line)
            except KeyboardInterrupt:
                self._console.print()
                self._note("Ctrl-D or /quit leaves")

    def _answer(self, line: str) -> None:
        if not _is_unicode(line):
            self._note("this is not valid Unicode, so nothing was sent")
        elif line.startswith("/") and not line.startswith("//"):
            try:
                self._command(*line.split(maxsplit=1))
            except (UserError, DataError) as error:
                self._note(str(error))
        elif line:
            self._exchange(line.removeprefix("/") if line.startswith("//") else line)

    # Messages

    def _exchange(self, message: str) -> None:
        """A message and its reply; where that has no word, it is as if nothing had been said."""
        from eval.conversation import reply, request

        turns = [*self.turns, Turn("user", message)]
        try:
            asked = request(self._run, turns, self.system, self.max_new_tokens)
        except DataError as error:  # there is no room for a message beside so long a reply
            self._note(str(error))
            return
        for note in asked.notes:
            self._note(note)
        self._console.print(Text("Model: ", "bold cyan"), end="")
        said, end = "", None

        def on_text(text: str) -> None:
            nonlocal said
            if self._is_stopped:
                raise KeyboardInterrupt
            text = text if said else text.lstrip()
            said += text
            self._console.out(printable(text), end="", highlight=False)
            self._console.file.flush()

        seed = (self.seed + self._num_replies) % 2**32
        self._num_replies += 1
        with contextlib.suppress(KeyboardInterrupt), self._stoppable():
            end = reply(self._run, asked, sampling=self.sampling, seed=seed, on_text=on_text).finish
        self._console.print()
        if not said:
            self._note(f"{'stopped' if end is None else 'the reply is empty'}; your message is taken back")
            return
        if end is None:
            self._note("stopped")
        elif end == "length":
            self._note(f"the reply was cut off at {asked.max_new_tokens} tokens")
        self.turns = [*turns, Turn("assistant", said.rstrip())]
        if self.transcript is not None:
            self.save(self.transcript)

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C is remembered here, because the interrupt itself can get lost while JAX compiles."""

        def stop(*_) -> None:
            self._is_stopped = True
            raise KeyboardInterrupt

        self._is_stopped = False
        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # Commands

    def _command(self, name: str, argument: str = "") -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/system": self._set_system,
            "/set": self._set,
            "/undo": self._undo,
            "/save": self._save,
        }
        if name not in commands:
            raise UserError(f"there is no command {name[:40]}; /help lists them.{nearest(name, commands)}")
        commands[name](argument)

    def _help(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        for name, what in COMMANDS.items():
            table.add_row(Text(name, "bold"), what)
        self._console.print(table, soft_wrap=False)

    def _reset(self, _: str) -> None:
        self.turns = []
        self._note("a new conversation")

    def _set_system(self, text: str) -> None:
        if self._form == "sources":
            raise UserError(_NO_SYSTEM)
        self.system = text
        self._note("the system text is set" if text else "there is no system text")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        name = name.replace("-", "_")
        if name not in self._settings():
            if name:
                raise UserError(f"there is no setting {name[:40]}.{nearest(name, self._settings())}")
        elif name in _RANGES:
            number = _number(name, value, int)
            _check_range(name, number)
            setattr(self, name, number)
        else:
            is_none = value == "none" and name in ("top_k", "top_p", "min_p")
            number = None if is_none else _number(name, value, int if name == "top_k" else float)
            try:
                self.sampling = dataclasses.replace(self.sampling, **{name: number})
            except ValueError as error:
                raise UserError(str(error)) from error
        self._note(self._settings_line())

    def _settings(self) -> dict[str, int | float | None]:
        return vars(self.sampling) | {name: getattr(self, name) for name in _RANGES}

    def _settings_line(self) -> str:
        named = self._settings().items()
        return ", ".join(f"{name} {'none' if value is None else value}" for name, value in named)

    def _undo(self, _: str) -> None:
        if not self.turns:
            raise UserError("there is nothing to take back")
        message = self.turns[-2].text
        self.turns = self.turns[:-2]
        self._note(f"taken back: {message[:60]}{'…' if len(message) > 60 else ''}")

    def _save(self, argument: str) -> None:
        if not argument:
            raise UserError("/save needs the name of a file")
        path = Path(argument)
        if path not in self._saved:
            _check_new(path)
        self.save(path)
        self._note(f"{len(self.turns)} turns are in {path}")

    def save(self, path: Path) -> None:
        """Write the conversation to `path`: a record of the task dialogue in a .jsonl, text elsewhere."""
        content = self._record() if path.suffix == ".jsonl" else self._text()
        write_atomically(path, content.encode())
        self._saved.add(path)

    def _record(self) -> str:
        turns = [{"role": turn.role, "content": turn.text} for turn in self.turns]
        about = {"run": str(self._run.directory), "step": self._run.step, "settings": self._settings()}
        return json.dumps({"system": self.system, "turns": turns, **about}, ensure_ascii=False) + "\n"

    def _text(self) -> str:
        names = {"user": "You", "assistant": "Model"}
        paragraphs = [f"Conversation with {self._run.directory}, step {self._run.step}\n({self._settings_line()})"]
        paragraphs += [f"System: {self.system}"] if self.system else []
        paragraphs += [f"{names[turn.role]}: {turn.text}" for turn in self.turns]
        return printable("\n\n".join(paragraphs)) + "\n"

    # The terminal

    def _greet(self) -> None:
        how = {
            "roles": "a dialogue model",
            "plain": 'a language model without roles, which continues "User: … Assistant:"',
            "sources": "a model that answers each message by itself",
        }
        run, length = self._run, self._run.config.model.max_length
        self._note(f"{run.directory}, step {run.step}: {how[self._form]}; it reads {length:,} tokens")
        self._note("/help lists the commands, Ctrl-D leaves")

    def _note(self, text: str) -> None:
        self._console.print(Text(printable(text), "dim"))

    def _read(self) -> str | None:
        """A line of stdin; None at its end. What a script says is printed, too, so that its output can be read."""
        if self._is_live:
            # Readline must be told which characters take no room on the screen.
            marks = ("\x01\x1b[1;32m\x02", "\x01\x1b[0m\x02") if self._console.color_system else ("", "")
            try:
                return input("You: ".join(marks))
            except EOFError:
                self._console.print()
                return None
        line = sys.stdin.readline()
        if not line:
            return None
        self._console.print(Text("You: ", "bold green"), Text(printable(line.rstrip("\n"))), sep="")
        return line


def _number(name: str, text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"/set {name} needs a number, not {text[:40]!r}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
