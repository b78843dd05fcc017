"""The command line; each command imports what it needs only when it runs, so that help comes at once."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

from ._files import csv_rows
from .errors import ParameterError, T2TError, UnknownNameError

_PACKAGE = Path(__file__).resolve().parent


class Command(NamedTuple):
    """A command lives in a module with ``add_arguments(parser)`` and ``run(arguments) -> int | None``."""

    module: str
    words: str
    examples: tuple[str, ...]

    @property
    def exists(self) -> bool:
        """Whether its module is there; asked of the files, since importing it would be slow."""
        return (_PACKAGE / self.module.replace(".", "/")).with_suffix(".py").is_file()


#: name of a command -> what it is; a line each in ``commands.csv``, with an example a line
COMMANDS = {
    row["command"]: Command(row["module"], row["words"], tuple(row["examples"].split("\n")))
    for row in csv_rows(_PACKAGE / "commands.csv")
}
#: what several commands say of one option
LABELLED = "photo_crops, a tree of class folders, a .tar, or a set as torch/cifar10"
WEIGHTS = "auto, bundled, published, random, or a file"


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of printing the usage; that of a command is imported when it is asked."""

    module = ""

    def error(self, message: str) -> NoReturn:
        raise ParameterError(f"{message} ({self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = action.option_strings[0] if action.option_strings else action.dest
            raise UnknownNameError(what, value, map(str, action.choices))

    def filled(self) -> Self:
        """The same, with all that the command takes."""
        if self.module:
            module = import_module(f"{__package__}.{self.module}")
            module.add_arguments(self)
            self.set_defaults(run=module.run)
            self.module = ""
        return self

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super(_Parser, self.filled()).parse_known_args(args, namespace)


def parsers() -> tuple[_Parser, Mapping[str, _Parser]]:
    """The parser, and that of each command whose module is there."""
    options: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    says = "What vision transformers do with local structure: T2T-ViT against ViT, measured."
    more = "t2t-analysis COMMAND --help says what a command takes, with examples."
    whole = _Parser(prog="t2t-analysis", description=says, epilog=more, **options)
    whole.add_argument("--version", action="store_true", help="print the version and exit")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        if command.exists:
            lines = [f"  t2t-analysis {name} {example}".rstrip() for example in command.examples]
            said = f"{command.words[0].upper()}{command.words[1:]}."
            epilog = "\n".join(["examples:", *lines])
            added = commands.add_parser(name, help=command.words, description=said, epilog=epilog, **options)
            added.module = command.module
    return whole, commands.choices


def _parsed(arguments: Sequence[str]) -> argparse.Namespace | None:
    """What was typed; None, after the help was printed, without a command."""
    whole, commands = parsers()
    given, unknown = whole.parse_known_args(arguments)
    if unknown:
        parser = commands[given.command] if given.command else whole
        options = [option for action in parser._actions for option in action.option_strings]
        if unknown[0].startswith("-"):
            raise UnknownNameError(f"option of {parser.prog}", unknown[0].split("=")[0], options)
        raise ParameterError(f"{unknown[0]!r} is one word too many ({parser.prog} --help)")
    if given.command is None and not given.version:
        whole.print_help()
        return None
    return given


#: what the system says when nothing more can be written
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for a mistake in how it was called."""
    try:
        given = _parsed(sys.argv[1:] if arguments is None else list(arguments))
        if given is None:
            return 2
        return _version() if given.version else given.run(given) or 0
    except T2TError as error:
        print(f"t2t-analysis: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("t2t-analysis: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f": {error.filename2 or error.filename}" if error.filename else ""
        print(f"t2t-analysis: {error.strerror}{where}; what was finished before is whole", file=sys.stderr)
        return 1


def _version() -> int:
    from . import __version__

    print(__version__)
    return 0


def positive(text: str) -> int:
    """A whole number from 1 on, for an option.

    >>> positive("3")
    3
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


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
