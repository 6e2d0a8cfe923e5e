"""Every relative link of a Markdown page of this repository leads to a file that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paths import ROOT

FOLDERS = (ROOT / "docs", ROOT / "experiments", ROOT / "recipes", ROOT / "runtime")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert not [target for target in local if not (page.parent / target).exists()]
