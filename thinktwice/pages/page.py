"""What the pages of skew and drift share: they open offline, load nothing and run no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from thinktwice.pages.style import STYLE

FIRST, SECOND, LIVE = "#c3cad6", "#8fb0e8", "#e0662f"
MORE_STYLE = ".bars{min-width:150px}td.left{text-align:left}svg.small{width:auto;display:inline-block}"
MAX_BINS = 40


def page(title: str, subtitle: str, verdict: Sequence[str], good: bool, body: Sequence[str]) -> str:
    """A whole page: the verdict first, then the rest."""
    lines = "".join(f"<p>{escape(line)}</p>" for line in verdict)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}{MORE_STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p class='faint'>{escape(subtitle)}</p></header>"
        f"<section class='card verdict{' on' if good else ' warn'}'>{lines}</section>{''.join(body)}</main></body></html>\n"
    )


def tiles(found: Sequence[tuple[str, str]]) -> str:
    """Numbers with their names."""
    cells = "".join(
        f"<div class='tile'><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in found
    )
    return f"<div class='tiles'>{cells}</div>"


def card(title: str, meaning: str, inner: str) -> str:
    """One section."""
    return f"<section class='card'><h2>{escape(title)}</h2><p class='faint'>{escape(meaning)}</p>{inner}</section>"


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table of finished cells."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<div class='scroll'><table><tr>{names}</tr>{''.join(rows)}</table></div>"


def legend(names: Mapping[str, str]) -> str:
    """Coloured names."""
    shown = "".join(f"<span><i style='background:{color}'></i>{escape(name)}</span>" for name, color in names.items())
    return f"<div class='legend'>{shown}</div>"


def bars(labels: Sequence[str], series: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    """Thin bars per bin, one of each (name, color, shares); hovering shows the numbers. Empty bins are left out."""
    kept = [i for i in range(len(labels)) if any(shares[i] > 0 for _, _, shares in series)][:MAX_BINS]
    if not kept:
        return ""
    most = max(shares[i] for i in kept for _, _, shares in series)
    step = max(5.0, min(18.0, 300 / len(kept)))
    width = step * 0.86 / len(series)
    out = []
    for place, i in enumerate(kept):
        told = ", ".join(f"{name} {shares[i]:.2%}" for name, _, shares in series)
        for number, (_, color, shares) in enumerate(series):
            tall = 36 * shares[i] / most
            out.append(
                f"<rect x='{place * step + number * width:.1f}' y='{38 - tall:.1f}' width='{width:.1f}' height='{tall:.1f}' "
                f"fill='{color}'><title>{escape(labels[i])}: {escape(told)}</title></rect>"
            )
    return (
        f"<svg class='small' viewBox='0 0 {step * len(kept):.0f} 39' width='{step * len(kept):.0f}' height='39' role='img' "
        f"aria-label='shares'>{''.join(out)}</svg>"
    )
