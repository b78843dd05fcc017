"""``python -m t2t_analysis look photo.jpg``: one photograph, one model, a summary and a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._repr import html_table
from ..cli import WEIGHTS

if TYPE_CHECKING:
    from ..measures.glance import Glance
    from ..plots.base import Figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    add = parser.add_argument
    add("photo", help="an image file, or the name of an embedded photograph, as chelsea")
    add("--model", default="small_performer_deep", help="name of a model (default: %(default)s)")
    add("--weights", default="auto", help=WEIGHTS)
    add("--out", type=Path, metavar="FILE", help="the page; default: in reports/look/")
    add("--open", action="store_true", help="open the page in a browser")


def run(arguments: argparse.Namespace) -> int:
    """Print the summary, write the page, and open it if asked."""
    from .._files import writable_folder, write_whole
    from .._paths import default_reports_dir
    from .._repr import aligned
    from ..plots.glance import glance_depth, glance_maps

    name = f"{Path(arguments.photo).stem}__{arguments.model.replace('/', '-')}.html"
    out = arguments.out or default_reports_dir() / "look" / name
    writable_folder(out.parent)
    seen = look(arguments.photo, arguments.model, arguments.weights)
    lines = summary(seen)
    print(f"{arguments.photo} in {seen[0].label}, {seen[0].weights}")
    print("\n".join(aligned(lines)))
    print(_CAUTION)
    write_whole(out, page(arguments.photo, seen, lines, [glance_maps(seen), glance_depth(seen)]))
    print(f"page: {out}")
    if arguments.open:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())
    return 0


def look(photo: str, model: str = "small_performer_deep", weights: str = "auto") -> list[Glance]:
    """What a photograph shows in a model, and in the same network with random weights unless it has those itself.

    Raises
    ------
    DataError
        No such photograph, or not one that can be read.
    UnknownNameError, CheckpointError
        As `load_model`.
    """
    from .. import load_images, load_model
    from ..data.photos import PHOTOS, photo_path
    from ..measures.glance import glance
    from ..measures.untrained import random_twins

    path = photo_path(photo) if photo in {one.name for one in PHOTOS} else photo
    network = load_model(model, weights)
    image = next(iter(load_images(path, model=network, n_images=1, batch_size=1))).images
    networks = {model: network} | random_twins({model: network})
    return [glance(one, image, label) for label, one in networks.items()]


_CAUTION = (
    "One photograph: no intervals, and nothing here need hold for others. The control is the same network with "
    "random weights: what both show belongs to the architecture."
)


def summary(seen: Sequence[Glance]) -> list[tuple[str, ...]]:
    """A head and a row a number: words, and its value in each network."""
    rows: list[tuple[str, Any]] = [
        (f"half of the attention of the {seen[0].asks}, last block", lambda one: f"{one.half[-1]:.1%} of the patches"),
        ("patch tokens whose norm stands apart, most in a block", _apart),
        ("variance in the first three components, last block", lambda one: f"{one.explained.sum():.1%}"),
        ("heads that agree most", _closest),
        ("likeliest classes", _classes),
    ]  # fmt: skip
    head = ("", *("UNTRAINED" if one.untrained else "trained" for one in seen))
    return [head, *((words, *(value(one) for one in seen)) for words, value in rows)]


def _apart(one: Glance) -> str:
    block = one.most_apart
    count, total = int(one.apart[block].sum()), one.apart[block].size
    if not count:
        return f"none of {total} in any block"
    return f"{count} of {total} in block {block + 1}, {one.apart_ratio:.1f} times the norm of the others"


def _closest(one: Glance) -> str:
    if (found := one.closest_heads) is None:
        return "no two heads to compare"
    block, head, other, cosine = found
    return f"block {block + 1}, heads {head + 1} and {other + 1}: centred cosine {cosine:.2f}"


def _classes(one: Glance) -> str:
    if one.untrained or not len(one.logits):
        return "not asked: random weights" if one.untrained else "no classifier"
    from ..data.imagenet import class_names

    names = class_names(len(one.logits))
    best = one.logits.softmax(0).topk(min(3, len(one.logits)))
    found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return ", ".join(f"{names[i] if names else f'class {i}'} {share:.0%}" for share, i in found)


def page(photo: str, seen: Sequence[Glance], rows: Sequence[Sequence[str]], figures: Sequence[Figure]) -> str:
    """The page: one file that asks for nothing else."""
    from ..reports.index import rendered

    head, *body = rows
    table = html_table("What the photograph shows", head, body)
    about = {"photo": Path(photo).name, "seen": seen, "table": table, "caution": _CAUTION, "figures": figures}
    return rendered("look.html.j2", about) + "\n"
