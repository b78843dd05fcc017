"""``python -m t2t_analysis completion``: what a shell needs to complete commands, options and names."""

from __future__ import annotations

import argparse

#: Options whose values have names; all others that take text take a file or folder as well.
_MODELS = frozenset({"model", "models", "baseline", "pattern"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell to complete in")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from .._names import our_models
    from ..cli import parsers
    from ..reports.plan import available

    whole, commands = parsers()
    for action in (action for parser in commands.values() for action in parser.filled()._actions):
        if action.dest in _MODELS:
            action.choices = our_models()
        elif action.dest == "notebooks":
            action.choices = available()
        elif action.choices is None and action.nargs != 0 and action.type in (None, str):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(whole, arguments.shell))
    return 0
