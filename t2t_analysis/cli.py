"""The command line; each command imports what it needs only when it runs, so that help comes at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ParameterError, T2TError, UnknownNameError

__all__ = ["main"]

_PACKAGE = Path(__file__).resolve().parent


class Command(NamedTuple):
    """A command lives in a module with ``add_arguments(parser)`` and ``run(arguments) -> int | None``."""

    module: str
    words: str

    @property
    def exists(self) -> bool:
        """Whether its module is there; asked of the files, since importing it would be slow."""
        return (_PACKAGE / self.module.replace(".", "/")).with_suffix(".py").is_file()


COMMANDS = {
    "report": Command("reports.cli", "run notebooks and write their reports"),
    "models": Command("commands.models", "list the models and where their weights come from"),
    "train": Command("training.cli", "train a model"),
    "evaluate": Command("training.evaluate", "measure the accuracy of a model on a data set"),
    "study": Command("commands.study", "train and compare the matched small models over seeds"),
    "evidence": Command(
        "commands.evidence", "measure real weights for the verdicts, into a table that is kept"
    ),
    "bench": Command("commands.bench", "run the benchmarks of a checkout"),
}


def _available() -> dict[str, Command]:
    return {name: command for name, command in COMMANDS.items() if command.exists}


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen command is imported to say what it takes."""
    parser = argparse.ArgumentParser(
        prog="t2t-analysis",
        description="What vision transformers do with local structure: T2T-ViT against ViT, measured.",
        epilog="t2t-analysis COMMAND --help says what a command takes.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in _available().items():
        sub = commands.add_parser(name, help=command.words, description=command.words.capitalize() + ".")
        if name == chosen:
            module = import_module(f"{__package__}.{command.module}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _chosen(arguments: Sequence[str]) -> str | None:
    """The first word that is no option; an unknown one is an error that names the nearest."""
    words = [word for word in arguments if not word.startswith("-")]
    if not words:
        return None
    if words[0] not in _available():
        raise UnknownNameError("command", words[0], _available())
    return words[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for a mistake in how it was called."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = _parser(_chosen(arguments))
        given = parser.parse_args(arguments)
        if given.version:
            return _version()
        if given.command is None:
            parser.print_help()
            return 2
        return given.run(given) or 0
    except T2TError as error:
        print(f"t2t-analysis: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("t2t-analysis: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        sys.stderr.close()
        return 0


def _version() -> int:
    from . import __version__

    print(__version__)
    return 0


def value(text: str) -> Any:
    """Return a parameter as it was typed, with ``None`` and lists understood.

    >>> value("3"), value("[1, 2]"), value("None"), value("t2t_vit_14")
    ('3', [1, 2], None, 't2t_vit_14')
    """
    import json

    if text == "None":
        return None
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except ValueError:
            raise ParameterError(f"{text}: not a list that can be read") from None
    return text
