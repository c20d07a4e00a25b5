"""Vega-Lite specifications of the page's charts, and the compact columns of their data.

Colours, fonts and widths are the page's (script.js), which draws them anew where its theme changes.
A specification names its data as `{"name": ...}`; the script fills it in from columns, since one
object a point would take several times the room.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
Spec = dict[str, Any]
# Values, or numbers that stand for names: {"names": [...], "numbers": [...]}.
Columns = dict[str, Any]
# Classes of which a legend, or the name of each on an axis, is still read.
LEGEND_CLASSES = 16
NAMED_CELLS = 30
# ... and up to which numbers stand in the cells.
WRITTEN_CELLS = 12
# Marks from which a chart is drawn as pixels: shapes are sharper, but each takes room and time.
PIXELS_FROM = 1500
# Of an axis whose numbers mean nothing.
_BARE = {"labels": False, "ticks": False, "grid": False}
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")


class Chart(NamedTuple):
    """A figure of the page."""

    name: str
    caption: str  # what it means, and whether more is better
    label: str  # what is on it, for those who do not see it
    spec: Spec
    data: str  # the columns it is drawn from
    renderer: str = "svg"


def rounded(values: Any, digits: int = 3) -> list[float | None]:
    """Numbers with so many digits after the point; None for those that are not finite."""
    array = np.asarray(values, np.float64).reshape(-1)
    return [round(v, digits) if math.isfinite(v) else None for v in array.tolist()]


def _spec(data: str, height: int | Mapping[str, Any], **rest: Any) -> Spec:
    return {
        "$schema": SCHEMA,
        "data": {"name": data},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        **rest,
    }


def _field(name: str, kind: str, title: str | None, **rest: Any) -> dict[str, Any]:
    return {"field": name, "type": kind, "title": title, **rest}


def _tip(name: str, title: str, form: str | None = None) -> dict[str, Any]:
    kind = "nominal" if form is None else "quantitative"
    return _field(name, kind, title, **({} if form is None else {"format": form}))


def _names_below(slanted: bool) -> dict[str, Any]:
    """An axis whose labels are numbers, or names, which stand aslant."""
    return {"labelAngle": -40, "labelLimit": 130} if slanted else {"labelAngle": 0}


def sizes(data: str, expected: float | None, *, slanted: bool = False) -> Spec:
    """Bars of the classes' sizes, largest first.

    Args:
      data: columns `class`, `order`, `rows`, `agreement`.
      expected: rows that each class was expected to hold, None where they differ.
      slanted: whether names of classes, not too many, stand on the axis.
    """
    bars = {
        "mark": {"type": "bar"},
        "encoding": {
            "x": _field(
                "class",
                "ordinal",
                "class, largest first",
                sort={"field": "order"},
                axis={**_names_below(slanted), "labelOverlap": not slanted, "ticks": False},
            ),
            "y": _field("rows", "quantitative", "rows"),
            "tooltip": [
                _tip("class", "class"),
                _tip("rows", "rows", ",d"),
                _tip("agreement", "agreement", ".3f"),
            ],
        },
    }
    if expected is None:
        return _spec(data, 220, **bars)
    rule = {
        "data": {"values": [{"expected": expected}]},
        "mark": {"type": "rule", "strokeDash": [5, 4], "style": "reference"},
        "encoding": {
            "y": {"field": "expected", "type": "quantitative"},
            "tooltip": [_tip("expected", "rows if all classes were equal", ",.0f")],
        },
    }
    return _spec(data, 220, layer=[bars, rule])


def points(
    data: str,
    n_classes: int,
    colour: str,
    hints: Sequence[tuple[str, str]],
    called: Sequence[str] = (),
) -> Spec:
    """The map of the samples.

    Args:
      data: columns `x`, `y`, `class`, `agreement` and those of the hints.
      n_classes: K.
      colour: `class` or `agreement`.
      hints: columns shown where one points, each with its title.
      called: every class in words, if any has a name.
    """
    columns = min(n_classes if n_classes <= 8 else -(-n_classes // 2), 3 if called else n_classes)
    by_class = {
        "color": _field(
            "class",
            "nominal",
            "class",
            sort=None,
            scale={"domain": list(range(n_classes))},
            legend={
                "columns": columns,
                "symbolOpacity": 1,
                **({"labelExpr": "called[datum.value]", "labelLimit": 90} if called else {}),
            }
            if n_classes <= LEGEND_CLASSES
            else None,
        ),
        "shape": _field(
            "class",
            "nominal",
            "class",
            sort=None,
            scale={"domain": list(range(n_classes)), "range": list(_SHAPES)},
        ),
    }
    by_agreement = {
        "color": _field(
            "agreement",
            "quantitative",
            "agreement",
            scale={"domain": [0, 1], "range": "ramp"},
            legend={"gradientLength": 160, "format": ".1f"},
        )
    }
    # Without a class chosen the surer rows stand out, of a chosen class all are seen. A field of
    # its own, since legends take the opacity of a condition.
    shown = "0.15 + 0.7 * datum.agreement" if colour == "class" else "0.75"
    seen = f"chosen < 0 || datum.class == chosen ? {shown} : 0.03"
    return _spec(
        data,
        460,
        params=[
            {"name": "chosen", "value": -1},
            *([{"name": "called", "value": list(called)}] if called else []),
        ],
        transform=[
            {"calculate": seen, "as": "opacity"},
            *(
                {
                    "calculate": f"datum.{name} < 0 ? 'none' : "
                    + (f"called[datum.{name}]" if called and name == "second" else f"datum.{name}"),
                    "as": name,
                }
                for name, _ in hints
                if name in ("second", "true")
            ),
            # A field of its own, for colours and the class that is chosen go by the number.
            *([{"calculate": "called[datum.class]", "as": "in_words"}] if called else []),
        ],
        mark={"type": "point", "filled": True, "size": 26},
        encoding={
            "x": _field("x", "quantitative", "first direction", axis=_BARE),
            "y": _field("y", "quantitative", "second direction", axis=_BARE),
            **(by_class if colour == "class" else by_agreement),
            "opacity": {"field": "opacity", "type": "quantitative", "scale": None, "legend": None},
            "tooltip": [
                *(
                    _tip("in_words" if called and name == "class" else name, title)
                    for name, title in hints
                ),
                _tip("agreement", "agreement", ".3f"),
            ],
        },
    )


def curves(data: str, logarithmic: bool, anneals: Sequence[float], best: int | None) -> Spec:
    """The objective of every task against the step.

    Args:
      data: columns `task`, `step`, `value`.
      logarithmic: whether the values span decades.
      anneals: steps at which the learning rate or temperature falls.
      best: the task to bring out.
    """
    encoding = {
        "x": _field("step", "quantitative", "step of the search", axis={"tickMinStep": 1}),
        "y": _field(
            "value",
            "quantitative",
            "objective",
            scale={"type": "log", "zero": False} if logarithmic else {"zero": False},
        ),
        "detail": {"field": "task", "type": "nominal"},
    }
    lines: Spec = {
        "mark": {"type": "line", "style": "task"},
        "encoding": {
            **encoding,
            "tooltip": [
                _tip("task", "task"),
                _tip("step", "step", "d"),
                _tip("value", "objective", ".4f"),
            ],
        },
    }
    layers = [lines]
    if anneals:
        layers.append(
            {
                "data": {"values": [{"step": step} for step in anneals]},
                "mark": {"type": "rule", "strokeDash": [2, 4], "style": "reference"},
                "encoding": {"x": {"field": "step", "type": "quantitative"}},
            }
        )
    if best is not None:
        layers.append(
            {
                "transform": [{"filter": f"datum.task == {best}"}],
                "mark": {"type": "line", "style": "best"},
                "encoding": encoding,
            }
        )
    return _spec(data, 260, layer=layers)


def two_lines(data: str, x: tuple[str, str], y: tuple[str, str], form: str) -> Spec:
    """A quantity of run A and of run B, told apart by dashes as well.

    Args:
      data: columns `run` (A or B), x and y.
      x: column and title.
      y: column and title.
      form: of the quantity.
    """
    return _spec(
        data,
        260,
        mark={"type": "line", "point": True, "strokeWidth": 2},
        encoding={
            "x": _field(x[0], "quantitative", x[1], axis={"tickMinStep": 1}, scale={"zero": False}),
            "y": _field(y[0], "quantitative", y[1], axis={"format": form}),
            "color": _field("run", "nominal", "run", scale={"domain": ["A", "B"]}),
            "strokeDash": _field("run", "nominal", "run", scale={"domain": ["A", "B"]}),
            "tooltip": [_tip("run", "run"), _tip(x[0], x[1], "d"), _tip(y[0], y[1], form)],
        },
    )


def _frame(values: Sequence[float | None], least: float, most: float = math.inf) -> list[float]:
    """Ends of an axis, which keeps values that are nearly equal from looking far apart."""
    there = [value for value in values if value is not None] or [0.0]
    middle = (min(there) + max(there)) / 2
    half = max(1.15 * (max(there) - min(there)) / 2, least)
    return [round(middle - half, 6), round(min(middle + half, most), 6)]


def tasks(
    data: str,
    title: str,
    field: str,
    columns: Mapping[str, Sequence[Any]],
    line: float | None = None,
) -> Spec:
    """The objective of every task against another of its scores.

    Args:
      data: columns `task`, `objective`, `collapsed`, and the field.
      title: of the other score.
      field: of the other score.
      columns: of the data.
      line: a score of the vote, as a line.
    """
    objectives = columns["objective"]
    x = _frame(objectives, 0.01 * abs(max((o for o in objectives if o is not None), default=1)))
    y = _frame([*columns[field], line], 0.01, 1.002)
    dots: Spec = {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.85},
        "encoding": {
            "x": _field("objective", "quantitative", "objective", scale={"domain": x}),
            "y": _field(field, "quantitative", title, scale={"domain": y}),
            "shape": _field(
                "collapsed",
                "nominal",
                None,
                scale={"domain": ["sound", "collapsed"], "range": ["circle", "triangle-up"]},
                legend=None,
            ),
            "tooltip": [
                _tip("task", "task"),
                _tip("objective", "objective", ".4f"),
                _tip(field, title, ".4f"),
                _tip("collapsed", "task is"),
            ],
        },
    }
    if line is None:
        return _spec(data, 280, **dots)
    rule = {
        "data": {"values": [{field: line}]},
        "mark": {"type": "rule", "strokeDash": [5, 4], "style": "reference"},
        "encoding": {
            "y": {"field": field, "type": "quantitative"},
            "tooltip": [_tip(field, "vote of the tasks", ".4f")],
        },
    }
    return _spec(data, 280, layer=[dots, rule])


def heatmap(
    data: str,
    row: str,
    column: str,
    value: str,
    order: Mapping[str, Sequence[Any]],
    tips: Sequence[tuple[str, str, str | None]],
    *,
    low: float = 0.0,
    named: bool = True,
    written: str | None = None,
    slanted: bool = False,
) -> Spec:
    """Cells coloured by a share.

    Args:
      data: columns `row`, `column`, the value and those of the tips; cells without a row are blank.
      row: title of the rows.
      column: title of the columns.
      value: the column of shares.
      order: the cells' names in order, of `row` and of `column`.
      tips: column, title and format of what is shown where one points.
      low: the share of the palest colour.
      named: whether cells are named on the axes.
      written: a column whose number stands in the cell.
      slanted: whether the columns of the matrix have names.
    """
    ticks: dict[str, Any] = {"labels": named, "ticks": False, "labelOverlap": True}
    encoding = {
        "y": _field("row", "ordinal", row, sort=list(order["row"]), axis=ticks),
        "x": _field(
            "column",
            "ordinal",
            column,
            sort=list(order["column"]),
            axis={**ticks, **_names_below(slanted), "labelOverlap": not (named and slanted)},
        ),
    }
    # Every class has its place, whether or not a cell of it is filled.
    for axis, names in (("y", order["row"]), ("x", order["column"])):
        encoding[axis]["scale"] = {"domain": list(names), "paddingInner": 0.06 if named else 0}
    cells: Spec = {
        "mark": {"type": "rect"},
        "encoding": {
            **encoding,
            "color": _field(
                value,
                "quantitative",
                "share",
                scale={"domain": [low, 1], "range": "heatmap", "clamp": True},
                legend={"gradientLength": 160, "format": ".1f" if low < 0.8 else ".2f"},
            ),
            "tooltip": [_tip(*tip) for tip in tips],
        },
    }
    height = max(220, min(560, 30 * len(order["row"]) + 40))
    if written is None:
        return _spec(data, height, **cells)
    text: Spec = {
        "mark": {"type": "text", "fontSize": 11},
        "encoding": {
            **encoding,
            "text": {"field": written, "type": "nominal"},
            "color": {
                "condition": {
                    "test": f"datum.{value} > {low + 0.5 * (1 - low):.3f}",
                    "value": {"expr": "inkOver"},
                },
                "value": {"expr": "inkUnder"},
            },
        },
    }
    # Of the page's theme.
    inks = [{"name": "inkOver", "value": "white"}, {"name": "inkUnder", "value": "black"}]
    return _spec(data, height, params=inks, layer=[cells, text])
