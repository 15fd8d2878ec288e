"""Bars as SVG, without a drawing library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_COLOURS = ("#4472a8", "#8fb0d3", "#c9d8ea")
_LEFT, _RIGHT, _BAR, _GAP, _TOP = 300, 110, 14, 10, 56
_WIDTH = 900


@dataclass(frozen=True)
class Bars:
    """What is drawn beside one name: a bar for each series, None where there is none."""

    name: str
    values: Sequence[float | None]


def bars(title: str, unit: str, series: Sequence[str], groups: Sequence[Bars]) -> str:
    """Horizontal bars in groups, on a logarithmic scale."""
    known = [value for group in groups for value in group.values if value]
    if not known:
        return ""
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)) + 1e-9)
    high = max(high, low + 1)

    def x(value: float) -> float:
        share = (math.log10(max(value, 10**low)) - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    tall = [_BAR * len(group.values) + _GAP for group in groups]
    height = _TOP + sum(tall) + 30
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _text(12, 22, f"{title} ({unit}, logarithmic)", size=15),
    ]
    for number, name in enumerate(series):
        left = _LEFT + 120 * number
        drawn += [_box(left, 34, 10, 10, number), _text(left + 15, 43, name)]
    for power in range(low, high + 1):
        at = x(10**power)
        drawn += [
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{height - 26}" stroke="#ddd"/>',
            _text(at, height - 10, _said(10.0**power), anchor="middle"),
        ]
    top = float(_TOP)
    for group, room in zip(groups, tall, strict=True):
        drawn.append(_text(_LEFT - 8, top + (room - _GAP) / 2 + 4, group.name, anchor="end"))
        for number, value in enumerate(group.values):
            if value is not None:
                y = top + number * _BAR
                drawn += [
                    _box(_LEFT, y, max(x(value) - _LEFT, 1), _BAR - 2, number),
                    _text(x(value) + 5, y + _BAR - 4, _said(value), size=10),
                ]
        top += room
    return "\n".join([*drawn, "</svg>", ""])


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _box(x: float, y: float, width: float, height: float, number: int) -> str:
    colour = _COLOURS[number % len(_COLOURS)]
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222">{escape(text)}</text>'
