"""The kernels are compiled for a GPU, where there is none: to its assembler, which says how they divide and round."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it comes with torch for NVIDIA's GPUs)")

PROGRAM = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qvit.quantizers import fake_quantize_triton as kernels

SIZES = dict.fromkeys(("count", "rest", "groups", "bit_groups", "rows", "slots", "lowest", "chunks"), "i32")
TENSORS = dict.fromkeys(("x", "out", "d", "grad_x"), "*bf16") | {"widths": "*i64", "elements": "fp32"}
TENSORS |= dict.fromkeys(("scale", "offset", "sums", "grad_scale", "grad_offset", "grad_bits"), "*fp32")

def compiled(name, **fixed):
    kernel = getattr(kernels, name)
    fixed = {key: value for key, value in fixed.items() if key in kernel.arg_names}
    if not fixed["has_offset"]:
        fixed |= {key: None for key in ("offset", "grad_offset") if key in kernel.arg_names}
    kinds = {key: "constexpr" if key in fixed else (TENSORS | SIZES)[key] for key in kernel.arg_names}
    source = ASTSource(kernel, kinds, {(kernel.arg_names.index(key),): value for key, value in fixed.items()})
    options = {"enable_fp_fusion": name != "_values"}
    return triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options).asm["ptx"]

found = {}
for number, kind in enumerate(((True, False, True, False, 1), (False, True, False, True, 4))):
    fixed = dict(zip(("signed", "has_offset", "one_group", "wide", "tiles"), kind), padded=8, block=1024)
    for name in ("_values", "_gradients", "_bank"):
        found[f"{name} {number}"] = compiled(name, **fixed)
print(json.dumps(found))
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(capability)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 6
    for name, assembler in found.items():
        assert f".target sm_{capability}" in assembler, name
        if not name.startswith("_bank"):
            assert "div.rn.f32" in assembler, name
        if name.startswith("_values"):
            assert "fma" not in assembler, name
