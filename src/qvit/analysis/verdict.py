"""The verdict of an analysis in words: what is sensitive, what is not, what is a tie, and what to do about it.

Everything is read off the rows of analysis.json. A number is only called larger than another where the paired interval says so;
what shares a rank is called a tie. "Are attention and GELU the most sensitive?" is what the paper found (arXiv 2201.07703:
MSA and GELU); here it is answered from ranks: yes when the attention map and the GELU output both have rank 1 alone, partly
when one has, no when neither has, and "nothing stands out" when even rank 1 loses nothing beyond its interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .components import PARTS, Site, component_of
from .results import ALL_BUT, ALONE, points

Row = dict[str, Any]
CLAIMED = ("attention map", "GELU output")
MOST_NAMES = 6  # of a tie that are listed by name


def verdict(analysis: dict[str, Any]) -> list[str]:
    """Lines of text; a line that begins with two blanks belongs to the one above."""
    lines = [_head(analysis)]
    for steps in dict.fromkeys(row["finetune_steps"] for row in analysis["everything"]):
        for everything in (row for row in analysis["everything"] if row["finetune_steps"] == steps):
            here = [r for r in analysis["rows"] if r["bits"] == everything["bits"] and r["finetune_steps"] == steps]
            after = f" after {steps} training steps" if steps else ""
            lines.append(
                f"{everything['bits']} bits{after}: everything together loses {points(everything, 'loss')} points "
                f"({everything['agreement']:.1f} % same class as float)"
            )
            lines += [f"  {line}" for line in _at_one_width(here)]
    if "allocation" in analysis:
        lines.append(_allocation(analysis["allocation"]))
    return lines


def _head(analysis: dict[str, Any]) -> str:
    if analysis["judged_by"] == "labels":
        return (
            f"float top-1 {analysis['top1_float']:.2f} % on {analysis['labelled']} images; a point is a percent of them, "
            "an interval is 95 % and paired"
        )
    return f"{analysis['images']} images without labels: a loss is the percent of them that change their class"


def _at_one_width(rows: list[Row]) -> list[str]:
    alone = {kind: _of(rows, ALONE, kind) for kind in ("component", "part", "layer", "head")}
    company = {kind: _of(rows, ALL_BUT, kind) for kind in ("component", "layer", "head")}
    lines = ["one component at a time, points lost: " + _ranking(alone["component"], "loss")]
    lines.append("everything but one component, points won back: " + _ranking(company["component"], "gain"))
    lines.append(f"attention and GELU the most sensitive? {claim(alone['component'])}")
    if alone["part"]:
        lines.append(_parts(alone["part"]))
    for kind in ("layer", "head"):
        if alone[kind]:
            lines.append(f"{kind}s alone: {_leaders(alone[kind], 'loss')}")
            lines.append(f"{kind}s in company: {_leaders(company[kind], 'gain')}")
    lines.append(f"more bits for: {keep(alone['component'], company['component'])}")
    return lines


def _of(rows: list[Row], mode: str, kind: str) -> list[Row]:
    """Rows of one mode and kind, the most sensitive first."""
    value: Callable[[Row], float] = (lambda r: -r["loss"]) if mode == ALONE else (lambda r: -r["gain"])
    return sorted((r for r in rows if r["mode"] == mode and r["kind"] == kind), key=lambda r: (r["rank"], value(r)))


def is_real(row: Row, what: str) -> bool:
    """Larger than zero, beyond its interval."""
    return row[what] > row[f"{what}_half_width"]


def _ranking(rows: list[Row], what: str) -> str:
    """Rank. names and numbers; ties share a rank; what does not differ from zero comes last, without numbers."""
    parts = []
    real = [row for row in rows if is_real(row, what)]
    for rank in dict.fromkeys(row["rank"] for row in real):
        tied = [f"{row['name']} {points(row, what)}" for row in real if row["rank"] == rank]
        parts.append(f"{rank}. {' = '.join(tied)}")
    rest = [row["name"] for row in rows if not is_real(row, what)]
    if rest:
        parts.append(f"nothing measurable: {', '.join(rest)}")
    return "; ".join(parts)


def claim(components: list[Row]) -> str:
    """The paper's finding, held against the ranks of the components alone."""
    first = [row["name"] for row in components if row["rank"] == 1 and is_real(row, "loss")]
    if not first:
        return "nothing stands out: no component alone loses anything beyond its interval"
    found = [name for name in CLAIMED if name in first]
    answer = {2: "yes", 1: "partly", 0: "no"}[len(found)]
    ranks = {row["name"]: row for row in components}
    places = ", ".join(f"{name} has rank {ranks[name]['rank']} ({points(ranks[name], 'loss')})" for name in CLAIMED)
    others = [name for name in first if name not in CLAIMED]
    leaders = f"; rank 1 {'also ' if found else ''}holds {_names(others)}" if others else ""
    return f"{answer}: of {len(components)} components {places}{leaders}"


def _parts(rows: list[Row]) -> str:
    texts = [f"{row['name']} loses {points(row, 'loss')}" for row in rows]
    tie = len(rows) == len(PARTS) and rows[0]["rank"] == rows[1]["rank"]
    return ", ".join(texts) + (": a tie" if tie else "")


def _leaders(rows: list[Row], what: str) -> str:
    real = [row for row in rows if is_real(row, what)]
    if not real:
        return f"none of {len(rows)} differs from zero"
    first = [row for row in real if row["rank"] == real[0]["rank"]]
    tied = "" if len(first) == 1 else f" ({len(first)} tied)"
    names = _names([f"{row['name']} {points(row, what)}" for row in first])
    return f"first {names}{tied}; {len(rows) - len(real)} of {len(rows)} do not differ from zero"


def _names(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def keep(alone: list[Row], company: list[Row]) -> str:
    """Components that lead either ranking beyond their interval."""
    leading = [row["name"] for row in alone if row["rank"] == 1 and is_real(row, "loss")]
    leading += [row["name"] for row in company if row["rank"] == 1 and is_real(row, "gain")]
    return _names(list(dict.fromkeys(leading))) or "nothing in particular"


def _allocation(allocation: dict[str, Any]) -> str:
    """Mean bits of every component, or that the budget does not bind."""
    spent, budget = f"{allocation['gbitops']:.6g}", f"{allocation['budget_gbitops']:.6g} GBitOPs"
    bits = {
        Site(tensor, group): (width, len(widths))
        for tensor, widths in allocation["bits"].items()
        for group, width in enumerate(widths)
    }
    most = max(width for width, _ in bits.values())
    if all(width == most for width, _ in bits.values()):
        return f"allocation under {budget}: {most} bits everywhere cost {spent}; analyse more bits to make use of it"
    means: dict[str, list[int]] = {}
    for site, (width, groups) in bits.items():
        means.setdefault(component_of(site, groups), []).append(width)
    ordered = sorted(means, key=lambda name: -sum(means[name]) / len(means[name]))
    text = ", ".join(f"{name} {sum(means[name]) / len(means[name]):.1f}" for name in ordered)
    return f"allocation under {budget} ({spent} spent), mean bits: {text}"
