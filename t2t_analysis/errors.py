"""What went wrong: the value, what was expected, and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, choices: Iterable[str], n: int = 3) -> list[str]:
    """Return up to ``n`` of ``choices`` that look most like ``name``, best first.

    >>> nearest("t2t_vit14", ["t2t_vit_14", "t2t_vit_24", "resnet50"], n=1)
    ['t2t_vit_14']
    """
    known = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(str(name).lower(), known, n=n, cutoff=0.5)
    return [known[f] for f in found]


class T2TError(Exception):
    """Base of every error that this package raises on purpose."""


class UnknownNameError(T2TError, ValueError):
    """A name that is not one of the valid choices.

    >>> raise UnknownNameError("model", "t2t_vit14", ["t2t_vit_14", "t2t_vit_24"])
    Traceback (most recent call last):
    t2t_analysis.errors.UnknownNameError: unknown model 't2t_vit14'; did you mean 't2t_vit_14'? \
(known: t2t_vit_14, t2t_vit_24)
    """

    def __init__(self, what: str, given: object, choices: Iterable[str], hint: str = "") -> None:
        choices = list(choices)
        close = nearest(given, choices, n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        shown = ", ".join(choices[:24]) + (f", ... {len(choices)} in all" if len(choices) > 24 else "")
        super().__init__(f"unknown {what} {given!r}{guess} (known: {shown})" + (f" {hint}" if hint else ""))
        self.what, self.given, self.choices = what, given, choices


class CaptureError(T2TError, RuntimeError):
    """A place inside a model that cannot be observed, or that was never reached."""


class DataError(T2TError, ValueError):
    """Images that are missing, unreadable, or too few for what was asked."""


class CheckpointError(T2TError, ValueError):
    """A weights file that cannot be read, or does not fit the model; both sides are named."""


class DownloadError(T2TError, OSError):
    """A file that cannot be had from the network: unreachable, missing, incomplete, or not what was promised."""


class ParameterError(T2TError, ValueError):
    """Bad parameters of a notebook or command; shown without a traceback in a notebook."""

    def _render_traceback_(self) -> list[str]:  # IPython calls this instead of printing 60 lines of frames
        return [f"ParameterError: {self}"]
