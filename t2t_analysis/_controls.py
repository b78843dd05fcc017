"""Fields over an `Exploration`: they choose, it computes. The only file that needs ipywidgets, when it is used.

The fields are one output, the figure, its caption and the table are ordinary outputs after it, which the fields
replace. So a page or a saved notebook, where no widget runs, still holds the whole content. They are number fields and
lists, not sliders: those have no name for a screen reader, and a track has fewer pixels than a layer has channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from html import escape
from typing import TYPE_CHECKING, Any

from ._names import TWIN
from ._show import METADATA, called, table_data
from .scene import CLASS

if TYPE_CHECKING:
    import pandas as pd

    from .explorer import Exploration
    from .plots.base import Figure

__all__ = ["Controls", "Outputs", "show_exploration"]

#: three fields to a line where the window has the room, fewer where it has not
_LINES = (("image", "photograph"), ("query", "row", "column"), ("place", "head", "channel"))
_FIELD = {"layout": {"width": "230px"}, "style": {"description_width": "110px"}}
_BUSY = "Computing the picture …"
_STATIC = "Controls appear here in JupyterLab, with ipywidgets installed. Below is what they show first."
_CAPTION = "The numbers of the measures for what is shown; null: what they would be with nothing to see."


def _heading(name: Any) -> str:
    """A column's heading beside that of its model.

    >>> _heading("a"), _heading("a, random"), _heading("a, random: null")
    ('a', 'untrained', 'null')
    """
    return "null" if str(name).endswith(": null") else "untrained" if str(name).endswith(TWIN) else str(name)


class Outputs:
    """Figure and table as outputs of the running cell that can be replaced later."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    def __call__(self, figure: Figure, table: pd.DataFrame) -> None:
        """Show, or replace what was shown."""
        from IPython.display import display

        picture = figure.renamed(called)._repr_mimebundle_()
        data = table_data(table.rename(columns=_heading), _CAPTION)
        shown = {"figure": picture, "table": {kind: called(text) for kind, text in data.items()}}
        for role, data in shown.items():
            about = {"raw": True, "metadata": {METADATA: {"role": role}}}
            if role in self._handles:
                self._handles[role].update(data, **about)
            else:
                self._handles[role] = display(data, display_id=True, **about)
        figure.close()


class Controls:
    """Widgets that stand for a `Selection`; every change of one makes a new picture.

    Parameters
    ----------
    exploration : what is looked at; its ``selection`` follows the widgets.
    publish : takes each new figure and table.
    """

    def __init__(self, exploration: Exploration, publish: Callable[[Figure, pd.DataFrame], None]) -> None:
        import ipywidgets as widgets

        self.exploration, self.publish, self._busy = exploration, publish, False
        first, self.note = exploration.subjects[0], widgets.HTML()
        queries = [("patch at row, column", "patch"), ("class token", CLASS)][: 1 + first.has_class_token]
        lists: dict[str, Any] = {"image": self._images(), "query": queries, "place": list(first.places)}
        words = {"query": "token", "place": "layer"}
        self.widgets: dict[str, Any] = {}
        for name, value in asdict(exploration.selection).items():
            if name in lists:
                about = {"options": lists[name], "description": words.get(name, name)}
                self.widgets[name] = widgets.Dropdown(value=value, **about, **_FIELD)
            else:
                self.widgets[name] = widgets.BoundedIntText(value=value, min=0, max=10**6, **_FIELD)
        self.photograph = widgets.Text(
            description="own photograph", placeholder="path of a file, then Enter", continuous_update=False,
            **_FIELD | {"layout": {"width": "460px"}},
        )  # fmt: skip
        known = self.widgets | {"photograph": self.photograph}
        lines = [[known[name] for name in line] for line in _LINES]
        boxes = [widgets.HBox(line, layout={"flex_flow": "row wrap"}) for line in lines]
        names = [escape(called(subject.label)) for subject in exploration.subjects]
        follows = "".join(f"; {name} follows, at the same relative depth" for name in names[1:])
        whose = widgets.HTML(f"Layer, head and channel of <b>{names[0]}</b>{follows}")
        self.box = widgets.VBox([*boxes[:-1], whose, boxes[-1], self.note])
        self._fit()
        for widget in self.widgets.values():
            widget.observe(lambda _: self._redraw(self._fit), names="value")
        self.photograph.observe(lambda change: self._redraw(lambda: self._open(change["new"])), names="value")

    def _images(self) -> list[tuple[str, int]]:
        return [(name, i) for i, name in enumerate(self.exploration.names)]

    def _redraw(self, first: Callable[[], None]) -> None:
        """Change other widgets, then draw once; say meanwhile that a picture is coming, or why there is none."""
        if self._busy:
            return
        self._busy, self.note.value = True, _BUSY
        try:
            first()
            self.draw()
        except Exception as error:  # a widget's callback has no other place to complain
            self.note.value = f"<b>{escape(type(error).__name__)}: {escape(str(error))}</b>"
            raise
        finally:
            self._busy = False

    def _open(self, photograph: str) -> None:
        """Add a photograph of the reader's own to the list, and choose it."""
        self.exploration.add(photograph.strip())
        self.widgets["image"].options = self._images()
        self.widgets["image"].value = len(self.exploration.names) - 1

    def _fit(self) -> None:
        """Give every number field the range that its layer has, and say it beside the name."""
        subject, place = self.exploration.subjects[0], self.widgets["place"].value
        rows, columns = subject.grid
        counts = {"row": rows, "column": columns, "channel": subject.channels(place)}
        counts["head"] = heads = subject.heads(place)
        for name, count in counts.items():
            if count:  # where there are no heads, the number waits for the next layer that has some
                self.widgets[name].max = count - 1
                self.widgets[name].description = f"{name}, 0 to {count - 1}"
        self.widgets["head"].disabled = not heads
        self.widgets["row"].disabled = self.widgets["column"].disabled = self.widgets["query"].value == CLASS

    def draw(self) -> None:
        """Make the picture of the present selection."""
        chosen = {name: widget.value for name, widget in self.widgets.items()}
        self.exploration.move(replace(self.exploration.selection, **chosen))
        self.publish(*self.exploration.picture())
        self.note.value = ""


def show_exploration(exploration: Exploration, interactive: bool) -> None:
    """Show an exploration in a notebook: controls if asked for, then figure, caption and table."""
    outputs = Outputs()
    if not interactive:
        outputs(*exploration.picture())
        return
    from IPython.display import display

    controls = Controls(exploration, outputs)
    data: dict[str, Any] = dict(controls.box._repr_mimebundle_())
    data |= {"text/markdown": _STATIC, "text/plain": _STATIC}
    display(data, raw=True, metadata={METADATA: {"role": "text"}})
    controls.draw()
