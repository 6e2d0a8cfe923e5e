"""The verdict says what the rows say: ranks, ties, the answer about attention and GELU, and what to keep."""

from __future__ import annotations

from typing import Any

import pytest

from qvit.analysis.table import table
from qvit.analysis.verdict import claim, keep, verdict

Row = dict[str, Any]


def row(
    name: str, rank: int, loss: float, half_width: float = 0.5, kind: str = "component", mode: str = "alone"
) -> Row:
    found = {"mode": mode, "kind": kind, "name": name, "rank": rank, "bits": 3, "finetune_steps": 0}
    return {**found, "loss": loss, "loss_half_width": half_width, "gain": loss, "gain_half_width": half_width}


MAP, GELU, PROJ = "attention map", "GELU output", "proj weight"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            [row(MAP, 1, 5.0), row(GELU, 1, 4.8), row(PROJ, 3, 1.0)],
            "yes: of 3 components attention map has rank 1 (5.00 ± 0.50), GELU output has rank 1 (4.80 ± 0.50)",
        ),
        (
            [row(GELU, 1, 5.0), row(PROJ, 1, 4.9), row(MAP, 3, 0.2)],
            "partly: of 3 components attention map has rank 3 (0.20 ± 0.50), GELU output has rank 1 (5.00 ± 0.50); "
            "rank 1 also holds proj weight",
        ),
        (
            [row(PROJ, 1, 5.0), row(MAP, 2, 2.0), row(GELU, 3, 1.0)],
            "no: of 3 components attention map has rank 2 (2.00 ± 0.50), GELU output has rank 3 (1.00 ± 0.50); "
            "rank 1 holds proj weight",
        ),
        (
            [row(PROJ, 1, 0.3), row(MAP, 1, 0.2), row(GELU, 1, 0.1)],
            "nothing stands out: no component alone loses anything beyond its interval",
        ),
    ],
    ids=["yes", "partly", "no", "nothing"],
)
def test_attention_and_gelu(rows: list[Row], text: str) -> None:
    assert claim(rows) == text


def test_keep_names_the_leaders_of_both_rankings() -> None:
    alone = [row(MAP, 1, 5.0), row(GELU, 1, 4.8), row(PROJ, 3, 1.0)]
    company = [row(PROJ, 1, 3.0), row(MAP, 2, 2.0), row(GELU, 3, 0.1)]
    assert keep(alone, company) == "attention map, GELU output, proj weight"
    assert keep([row(MAP, 1, 0.1)], [row(MAP, 1, 0.1)]) == "nothing in particular"


def analysis(judged_by: str = "labels") -> dict[str, Any]:
    rows = [row(MAP, 1, 5.0), row(GELU, 1, 4.8), row(PROJ, 3, 0.2)]
    rows += [row(MAP, 1, 3.0, mode="all but"), row(GELU, 2, 1.0, mode="all but"), row(PROJ, 2, 0.1, mode="all but")]
    rows += [row("attention as a whole", 1, 9.0, kind="part"), row("MLP as a whole", 1, 8.9, kind="part")]
    for mode in ("alone", "all but"):
        rows += [row(f"blocks.0 head {head}", 1, 2.0, kind="head", mode=mode) for head in range(8)]
        rows += [row("blocks.0 head 9", 9, 0.0, kind="head", mode=mode)]
        rows += [row("blocks.0", 1, 0.1, kind="layer", mode=mode)]
    everything = {"bits": 3, "finetune_steps": 0, "loss": 12.0, "loss_half_width": 1.0, "agreement": 80.0}
    head = {"judged_by": judged_by, "labelled": 2000, "images": 2000, "top1_float": 77.0}
    return {**head, "everything": [everything], "rows": rows}


def test_the_whole_text() -> None:
    heads = "first " + ", ".join(f"blocks.0 head {head} 2.00 ± 0.50" for head in range(6))
    assert verdict(analysis()) == [
        "float top-1 77.00 % on 2000 images; a point is a percent of them, an interval is 95 % and paired",
        "3 bits: everything together loses 12.00 ± 1.00 points (80.0 % same class as float)",
        "  one component at a time, points lost: 1. attention map 5.00 ± 0.50 = GELU output 4.80 ± 0.50; nothing measurable: "
        "proj weight",
        "  everything but one component, points won back: 1. attention map 3.00 ± 0.50; 2. GELU output 1.00 ± 0.50; "
        "nothing measurable: proj weight",
        "  attention and GELU the most sensitive? yes: of 3 components attention map has rank 1 (5.00 ± 0.50), "
        "GELU output has rank 1 (4.80 ± 0.50)",
        "  attention as a whole loses 9.00 ± 0.50, MLP as a whole loses 8.90 ± 0.50: a tie",
        "  layers alone: none of 1 differs from zero",
        "  layers in company: none of 1 differs from zero",
        f"  heads alone: {heads} and 2 more (8 tied); 1 of 9 do not differ from zero",
        f"  heads in company: {heads} and 2 more (8 tied); 1 of 9 do not differ from zero",
        "  more bits for: attention map, GELU output",
    ]


def test_without_labels_a_loss_is_another_class() -> None:
    assert (
        verdict(analysis("float"))[0]
        == "2000 images without labels: a loss is the percent of them that change their class"
    )


def test_trained_rows_have_a_paragraph_of_their_own() -> None:
    both = analysis()
    both["everything"].append({**both["everything"][0], "finetune_steps": 50})
    both["rows"] += [{**r, "finetune_steps": 50} for r in both["rows"] if r["kind"] == "component"]
    text = verdict(both)
    assert (
        text[11]
        == "3 bits after 50 training steps: everything together loses 12.00 ± 1.00 points (80.0 % same class as float)"
    )
    assert text[12].startswith("  one component at a time")
    assert len(text) == 16  # no layers and heads there


def allocation(widths: list[int], budget: float) -> dict[str, Any]:
    bits = {"blocks.0.attn.attention": widths, "blocks.0.mlp.fc2.input": [2], "blocks.0.attn.qkv.weight": [2] * 6}
    return {**analysis(), "allocation": {"budget_gbitops": budget, "gbitops": 0.44, "bits": bits}}


def test_an_allocation_in_words() -> None:
    assert verdict(allocation([4, 3], 0.45))[-1] == (
        "allocation under 0.45 GBitOPs (0.44 spent), mean bits: attention map 3.5, GELU output 2.0, q weight 2.0, "
        "k weight 2.0, v weight 2.0"
    )
    assert verdict(allocation([2, 2], 9.0))[-1] == (
        "allocation under 9 GBitOPs: 2 bits everywhere cost 0.44; analyse more bits to make use of it"
    )


def test_the_table() -> None:
    """Heads are not in it; a ratio that was not measured is a dash."""
    both = analysis()
    both["rows"] = [{**r, "logit_sqnr_db": 12.34} for r in both["rows"] if r["kind"] == "component"]
    both["rows"].append({**both["rows"][0], "kind": "head", "name": "blocks.0 head 0"})
    both["everything"][0]["logit_sqnr_db"] = None
    assert table(both).splitlines() == [
        "| quantized     | 3 bits, alone | 3 bits, won back | 3 bits, dB |",
        "| ---           | --:           | --:              | --:        |",
        "| attention map | 5.00 ± 0.50   | 3.00 ± 0.50      | 12.3       |",
        "| GELU output   | 4.80 ± 0.50   | 1.00 ± 0.50      | 12.3       |",
        "| proj weight   | 0.20 ± 0.50   | 0.10 ± 0.50      | 12.3       |",
        "| everything    | 12.00 ± 1.00  |                  | -          |",
    ]
