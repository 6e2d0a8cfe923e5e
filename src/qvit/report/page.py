"""render(): one HTML file with everything inside: text, tables, data, charts, and the JavaScript that draws them.

Safety. Everything that comes out of a file is text: the template escapes it, the data are JSON in a block that is not a script
and cannot be closed from inside (`<` is written as \\u003c), and the page's Content-Security-Policy allows the two scripts whose
hashes it names, no other one, and no address to load anything from. Vega compiles expressions of charts with `Function`, hence
'unsafe-eval'; it sees the expressions of our charts only, run names are data to it.

Size. A specification is in the page once for all runs, a table once for all charts. Charts are drawn when they come near the
window, so a page of 40 runs is as quick to open as one of a single run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from .picture import SHOWN, Picture
from .rows import missing, provenance, recipe_text, side_by_side, tables_of
from .run import Run
from .theme import DARK, DASHES, LIGHT, SHAPES, Theme

RELOAD_SECONDS = 15
OPEN_AT_FIRST = 2  # runs whose details are open: more would be a very long page
MARKERS = {  # the shapes of Vega on a square from -5 to 5, for the legend of the page
    "circle": "M4,0A4,4 0 1,1 -4,0A4,4 0 1,1 4,0Z",
    "square": "M-3.5,-3.5H3.5V3.5H-3.5Z",
    "triangle-up": "M0,-4.5L4.5,3.5H-4.5Z",
    "diamond": "M0,-5L4,0L0,5L-4,0Z",
    "triangle-down": "M0,4.5L4.5,-3.5H-4.5Z",
    "cross": "M-4.5,-1.5H-1.5V-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5Z",
    "triangle-right": "M4.5,0L-3.5,4.5V-4.5Z",
}


@dataclass(frozen=True)
class Block:
    """What the page shows of one run alone."""

    run: Run
    pictures: list[Picture]


@dataclass(frozen=True)
class Page:
    """Everything on a page, in its order."""

    runs: Sequence[Run]
    tradeoff: list[Picture]
    training: list[Picture]
    bits: list[Picture]
    blocks: list[Block]
    analyses: list[Block]

    def pictures(self) -> list[Picture]:
        """All of them."""
        alone = [picture for block in (*self.blocks, *self.analyses) for picture in block.pictures]
        return [*self.tradeoff, *self.training, *self.bits, *alone]


def render(page: Page, *, live: bool) -> str:
    """The HTML of a page; `live` makes it reload itself."""
    scripts = [vega(), _file("page.js")]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = breakable
    return environment.from_string(_file("page.html")).render(
        page=page,
        tables_of=tables_of,
        provenance=provenance,
        recipe_text=recipe_text,
        missing=missing,
        style=palette_css() + _file("page.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        data=_inert(_data(page, live)),
        grid=side_by_side(page.runs),
        swatches=[_swatch(number) for number in range(len(page.runs))],
        open_at_first=OPEN_AT_FIRST,
        live=live,
        reload_seconds=RELOAD_SECONDS,
        made=f"{time.strftime('%Y-%m-%d %H:%M')} with qvit {version('qvit')}",
    )


@cache
def vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script, out of the vl-convert package."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def breakable(name: str) -> Markup:
    """A name as HTML that may be broken behind an underscore or a slash, and not inside of a word."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/])", name))


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _inert(data: dict[str, Any]) -> str:
    """JSON that no HTML parser finds a tag in."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")


def _data(page: Page, live: bool) -> dict[str, Any]:
    """What page.js reads: specifications and tables, each once, and which of them a picture is made of."""
    specs: dict[str, int] = {}
    tables: dict[int, int] = {}
    found: list[Any] = []
    pictures = {}
    for picture in page.pictures():
        for table in picture.tables.values():
            if id(table) not in tables:
                tables[id(table)] = len(found)
                found.append({"fields": table.fields, "rows": table.rows})
        pictures[picture.key] = {
            "spec": specs.setdefault(json.dumps(picture.chart), len(specs)),
            "tables": {name: tables[id(table)] for name, table in picture.tables.items()},
            "title": picture.title,
            "panel": picture.panel,
            "renderer": "canvas" if picture.canvas else "svg",
        }
    return {
        "parameter": SHOWN,
        "reload": RELOAD_SECONDS if live else 0,
        "themes": {"light": LIGHT.config(), "dark": DARK.config()},
        "specs": [json.loads(spec) for spec in specs],
        "tables": found,
        "pictures": pictures,
    }


def _swatch(number: int) -> dict[str, str]:
    """Colour, dash and shape of a run, for the legend."""
    return {
        "color": f"var(--run{number % len(LIGHT.palette)})",
        "dash": " ".join(map(str, DASHES[number % len(DASHES)])),
        "marker": MARKERS[SHAPES[number % len(SHAPES)]],
    }


def palette_css() -> str:
    """The custom properties that the style sheet and the legend use, for both themes."""

    def properties(theme: Theme) -> str:
        runs = "".join(f"--run{number}:{color};" for number, color in enumerate(theme.palette))
        return f":root{{--background:{theme.background};--text:{theme.text};--quiet:{theme.quiet};--line:{theme.grid};{runs}}}"

    return f"{properties(LIGHT)}@media screen and (prefers-color-scheme:dark){{{properties(DARK)}}}"
