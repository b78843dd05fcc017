"""TeX to MathML, which browsers draw without script or network.

math-core is not yet at version 1 and has renamed its functions between minor versions, so only this file
calls it.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from typing import Any

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@cache
def _converter() -> Any:
    from math_core import LatexToMathML

    return LatexToMathML(annotation=True)


def to_mathml(tex: str, *, display: bool = False) -> str:
    """Return ``tex`` as a MathML element; what cannot be converted is shown as its own source.

    >>> print(to_mathml("x^2")[:55])
    <math><semantics><msup><mi>x</mi><mn>2</mn></msup><anno
    >>> to_mathml(r"\\nonsense{")[:24]
    '<code class="tex" title='
    """
    from math_core import LatexError

    try:
        return _converter().convert_with_local_state(tex.strip(), displaystyle=display)
    except LatexError as error:
        lines = _COLOURS.sub("", str(error)).strip().splitlines()
        return f'<code class="tex" title="{escape(lines[0])}">{escape(tex)}</code>'
