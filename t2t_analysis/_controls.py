"""Fields over an `Exploration`: they choose, it computes. The only file that needs ipywidgets, when it is used.

The fields are one output, the figure, its caption and the table are ordinary outputs after it, which the fields
replace. So a page or a saved notebook, where no widget runs, still holds the whole content. They are number fields and
lists, not sliders: those have no name for a screen reader, and a track has fewer pixels than a layer has channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from html import escape
from typing import TYPE_CHECKING, Any

from ._show import METADATA, table_data
from .scene import CLASS

if TYPE_CHECKING:
    import pandas as pd

    from .explorer import Exploration, Selection
    from .plots.base import Figure

__all__ = ["Controls", "Outputs", "show_exploration"]

#: three fields to a line where the window has the room, fewer where it has not
_WIDTH, _WRAPPED = {"width": "230px"}, {"flex_flow": "row wrap"}
_NAMED = {"description_width": "110px"}
_BUSY = "Computing the picture …"
_STATIC = (
    "Controls appear here in JupyterLab, with ipywidgets installed. Below is what they would show first."
)
_CAPTION = (
    "The numbers of the measures for what is shown; null is what the value would be with nothing to see."
)


class Outputs:
    """Figure and table as outputs of the running cell that can be replaced later."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    def __call__(self, figure: Figure, table: pd.DataFrame) -> None:
        """Show, or replace what was shown."""
        self._put("figure", figure._repr_mimebundle_())
        self._put("table", table_data(for_page(table), _CAPTION))
        figure.close()

    def _put(self, role: str, data: dict[str, Any]) -> None:
        from IPython.display import display

        words = {"raw": True, "metadata": {METADATA: {"role": role}}}
        if role in self._handles:
            self._handles[role].update(data, **words)
        else:
            self._handles[role] = display(data, display_id=True, **words)


def for_page(table: pd.DataFrame) -> pd.DataFrame:
    """Return a readable table with fewer and shorter columns: units beside the words, nulls headed by that word."""
    units = [f" ({unit})" if unit != "none" else "" for unit in table["unit"]]
    narrow = {name: "null" for name in table if str(name).endswith(": null")}
    return table.assign(what=table["what"] + units).drop(columns="unit").rename(columns=narrow)


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
        self.seconds = 0.0
        self.note = widgets.HTML()
        self.widgets = self._shared(widgets) | self._of_model(widgets, 0, "")
        self.photograph = widgets.Text(
            description="own photograph", placeholder="path of a file, then Enter", continuous_update=False,
            layout={"width": "460px"}, style=_NAMED,
        )  # fmt: skip
        image = widgets.HBox([self.widgets["image"], self.photograph], layout=_WRAPPED)
        rows: list[Any] = [image, self._line(widgets, "query", "row", "column")]
        rows += [self._name(widgets, 0), self._line(widgets, "place", "head", "channel")]
        if len(exploration.subjects) == 2:
            self.widgets |= self._of_model(widgets, 1, "_b")
            words = "follows: same relative depth, head and channel"
            self.widgets["follow"] = widgets.Checkbox(
                value=True, indent=False, description=words, layout={"width": "auto"}
            )
            rows.append(widgets.HBox([self._name(widgets, 1), self.widgets["follow"]], layout=_WRAPPED))
            rows.append(self._line(widgets, "place_b", "head_b", "channel_b"))
        self.box = widgets.VBox([*rows, self.note])
        self._fit()
        for widget in self.widgets.values():
            widget.observe(lambda _: self._redraw(self._fit), names="value")
        self.photograph.observe(lambda change: self._redraw(lambda: self._open(change["new"])), names="value")

    def _shared(self, widgets: Any) -> dict[str, Any]:
        at, first = self.exploration.selection, self.exploration.subjects[0]
        images = [(name, i) for i, name in enumerate(self.exploration.names)]
        rows, columns = first.grid
        queries = [("patch at row, column", "patch"), ("class token", CLASS)][: 1 + first.has_class_token]
        return {
            "image": _list(widgets, "image", images, at.image),
            "query": _list(widgets, "token", queries, at.query),
            "row": _field(widgets, "row", at.row, rows),
            "column": _field(widgets, "column", at.column, columns),
        }

    def _of_model(self, widgets: Any, which: int, suffix: str) -> dict[str, Any]:
        subject, look = self.exploration.subjects[which], self.exploration.looks()[which]
        return {
            f"place{suffix}": _list(widgets, "layer", list(subject.places), look.place),
            f"head{suffix}": _field(widgets, "head", look.head, max(1, subject.heads(look.place))),
            f"channel{suffix}": _field(widgets, "channel", look.channel, subject.channels(look.place)),
        }

    def _line(self, widgets: Any, *names: str) -> Any:
        return widgets.HBox([self.widgets[name] for name in names], layout=_WRAPPED)

    def _name(self, widgets: Any, which: int) -> Any:
        return widgets.HTML(f"<b>{escape(self.exploration.subjects[which].label)}</b>")

    # ---------------------------------------------------------------------------------------- changes

    @property
    def selection(self) -> Selection:
        """What the widgets stand at; the second model's choices are None while it follows the first."""
        follow = "follow" not in self.widgets or self.widgets["follow"].value
        names = [f.name for f in fields(self.exploration.selection) if not (follow and f.name.endswith("_b"))]
        return type(self.exploration.selection)(**{name: self.widgets[name].value for name in names})

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
        images = self.widgets["image"]
        images.options = [(name, i) for i, name in enumerate(self.exploration.names)]
        images.value = len(self.exploration.names) - 1

    def _fit(self) -> None:
        """Give every field the range that its layer has, and let the second model follow the first."""
        self.widgets["row"].disabled = self.widgets["column"].disabled = self.widgets["query"].value == CLASS
        self._fit_model(0, "")
        if "follow" not in self.widgets:
            return
        follow = self.widgets["follow"].value
        if follow:
            self.widgets["place_b"].value = self.exploration.looks(self.selection)[1].place
        self._fit_model(1, "_b")
        if follow:
            look = self.exploration.looks(self.selection)[1]
            self.widgets["head_b"].value, self.widgets["channel_b"].value = look.head, look.channel
        self.widgets["place_b"].disabled = self.widgets["channel_b"].disabled = follow
        self.widgets["head_b"].disabled = self.widgets["head_b"].disabled or follow

    def _fit_model(self, which: int, suffix: str) -> None:
        subject, place = self.exploration.subjects[which], self.widgets[f"place{suffix}"].value
        if heads := subject.heads(place):  # elsewhere the number waits for the next layer that has heads
            _limit(self.widgets[f"head{suffix}"], "head", heads)
        self.widgets[f"head{suffix}"].disabled = not heads
        _limit(self.widgets[f"channel{suffix}"], "channel", subject.channels(place))

    def draw(self) -> None:
        """Make the picture of the present selection."""
        start = time.perf_counter()
        self.exploration.check(self.selection)
        self.exploration.selection = self.selection
        self.publish(*self.exploration.picture())
        self.seconds = time.perf_counter() - start
        self.note.value = ""


def _list(widgets: Any, name: str, options: Any, value: Any) -> Any:
    return widgets.Dropdown(options=options, value=value, description=name, layout=_WIDTH, style=_NAMED)


def _field(widgets: Any, name: str, value: int, available: int) -> Any:
    field = widgets.BoundedIntText(value=value, min=0, max=available - 1, layout=_WIDTH, style=_NAMED)
    _limit(field, name, available)
    return field


def _limit(field: Any, name: str, available: int) -> None:
    """Numbers that a field takes, which it says beside its name."""
    field.max, field.description = available - 1, f"{name}, 0 to {available - 1}"


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
