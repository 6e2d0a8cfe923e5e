"""Subjects: every site has one component, heads are the right rows and columns, blocks of Swin are told apart."""

from __future__ import annotations

from collections import Counter

import pytest
from torch import nn

from qvit.analysis.components import Site, Subject, all_sites, component_of, head_of, subjects
from qvit.network.convert import quantize
from toy_models import FAMILIES, swin, uniform, vit


def by_name(model: nn.Module) -> dict[str, Subject]:
    found = subjects(model)
    assert len({subject.key for subject in found}) == len(found)
    return {subject.name: subject for subject in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_components_divide_the_sites(family: str) -> None:
    """Each site is in exactly one component, and layers with what is outside of them make up the whole."""
    model = quantize(FAMILIES[family](), uniform(4), quiet=True)
    found, sites = subjects(model), all_sites(model)
    counts = Counter(site for subject in found if subject.kind == "component" for site in subject.sites)
    assert counts == dict.fromkeys(sites, 1)
    blocks = Counter(site for subject in found if subject.kind == "layer" for site in subject.sites)
    parts = Counter(site for subject in found if subject.kind == "part" for site in subject.sites)
    assert blocks == parts
    outside = {site for site in sites if site not in blocks}
    assert {site.tensor.split(".")[-2] for site in outside} <= {"proj", "reduction", "head", "head_dist", "fc"}
    assert len([s for s in found if s.kind == "layer"]) == (4 if "swin" in family else 2)


def test_names_of_a_vit() -> None:
    found = subjects(quantize(vit(), uniform(4), quiet=True))
    names = [subject.name for subject in found if subject.kind == "component"]
    assert names == [
        *("image", "patch embedding weight", "LayerNorm output", "q weight", "k weight", "v weight", "q", "k", "v"),
        *("attention map", "attention output", "proj weight", "fc1 weight", "GELU output", "fc2 weight", "classifier"),
    ]


def test_a_head_is_its_rows_of_qkv_and_its_columns_of_proj() -> None:
    """Head 1 of 3: rows 1, 4 and 7 of the nine groups of qkv."""
    model = quantize(vit(embed_dim=24, num_heads=3), uniform(4), quiet=True)
    head = by_name(model)["blocks.1 head 1"].selection
    assert head == {
        "blocks.1.attn.qkv.weight": {1, 4, 7},
        **{f"blocks.1.attn.{part}": {1} for part in ("q", "k", "v", "attention", "proj.weight", "proj.input")},
    }
    assert by_name(model)["k weight"].selection == {f"blocks.{block}.attn.qkv.weight": {3, 4, 5} for block in (0, 1)}


def test_swin_has_patch_merging_and_four_blocks() -> None:
    found = by_name(quantize(swin(), uniform(4), quiet=True))
    merging = {"layers.1.downsample.reduction.weight", "layers.1.downsample.reduction.input"}
    assert set(found["patch merging"].selection) == merging
    assert {"layers.0.blocks.1", "layers.1.blocks.0", "layers.1.blocks.1 head 1"} <= set(found)
    assert not merging & {
        site.tensor for subject in found.values() if subject.kind == "layer" for site in subject.sites
    }


def test_head_of_what_heads_share() -> None:
    assert head_of(Site("blocks.0.attn.qkv.input", 0), 1) is None
    assert head_of(Site("blocks.0.mlp.fc1.weight", 0), 1) is None
    assert head_of(Site("blocks.0.attn.qkv.weight", 5), 6) == 1


def test_a_tensor_without_a_role() -> None:
    with pytest.raises(ValueError, match=r"^blocks.0.gate.weight has no role in components.ROLES; add it there$"):
        component_of(Site("blocks.0.gate.weight", 0), 1)
