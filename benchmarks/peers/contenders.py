"""Who takes part: one visible list, in the order of the table.

The functions import their libraries inside, so that a process holds its own contender's library and no other's. A
preparation runs once, in a process of its own, before the contest: exporting and calibrating belong neither to load time
nor to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import network, openvino_peers, ort_peers, qvit_onnx_peers, qvit_peers, torch_peers, torchao_peers
from .task import Loaded, Task

Preparation = Callable[[Task], None]


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    key          its name in files and in --only
    title        its name in the table
    imports      modules that it cannot do without; imported first, and the time this takes is told apart
    preparations run before, in this order; each once for all who need it
    load         files -> ready to answer
    int8         a peer with 8-bit integers: one of those whose best is the bar
    restrictable it can be kept to AVX2 on a processor that has more
    """

    key: str
    title: str
    imports: tuple[str, ...]
    preparations: tuple[Preparation, ...]
    load: Callable[[Task], Loaded]
    int8: bool = False
    restrictable: bool = True


ORT, OPENVINO, TORCH = ("onnxruntime",), ("openvino",), ("torch", "timm")
EXPORTED = (network.float_model, ort_peers.export)
CONVERTED = (network.float_model, openvino_peers.convert)
TORCHAO = ("torch", "timm", "torchao")
FROZEN = (network.float_model, qvit_peers.programs)
ENGINE = ("qvit_runtime.engine",)

CONTENDERS = (
    Contender("eager", "PyTorch eager fp32", TORCH, (network.float_model,), torch_peers.eager),
    Contender("compile", "torch.compile fp32", TORCH, (network.float_model,), torch_peers.inductor),
    Contender("ort", "ONNX Runtime fp32", ORT, EXPORTED, ort_peers.load_float, restrictable=False),
    Contender(
        "ort_static",
        "ONNX Runtime int8 static (QDQ, per channel)",
        ORT,
        (*EXPORTED, ort_peers.int8_static),
        ort_peers.load_static,
        int8=True,
        restrictable=False,
    ),
    Contender(
        "ort_static_products",
        "ONNX Runtime int8 static, products only",
        ORT,
        (*EXPORTED, ort_peers.int8_static_products),
        ort_peers.load_static_products,
        int8=True,
        restrictable=False,
    ),
    Contender(
        "ort_dynamic",
        "ONNX Runtime int8 dynamic",
        ORT,
        (*EXPORTED, ort_peers.int8_dynamic),
        ort_peers.load_dynamic,
        int8=True,
        restrictable=False,
    ),
    Contender("openvino", "OpenVINO fp32", OPENVINO, CONVERTED, openvino_peers.load_float, restrictable=False),
    Contender(
        "openvino_default",
        "OpenVINO float as it comes",
        OPENVINO,
        CONVERTED,
        openvino_peers.load_as_it_comes,
        restrictable=False,
    ),
    Contender(
        "openvino_int8",
        "OpenVINO int8 (NNCF, transformer)",
        OPENVINO,
        (*CONVERTED, openvino_peers.int8),
        openvino_peers.load_int8,
        int8=True,
        restrictable=False,
    ),
    Contender(
        "torchao",
        "torchao int8 dynamic, eager",
        TORCHAO,
        (network.float_model, torchao_peers.int8),
        torchao_peers.eager,
        int8=True,
    ),
    Contender(
        "torchao_compile",
        "torchao int8 dynamic, compiled",
        TORCHAO,
        (network.float_model, torchao_peers.int8),
        torchao_peers.inductor,
        int8=True,
    ),
    *(
        Contender(f"qvit_{bits}", f"qvit {bits}/{bits}", ENGINE, FROZEN, qvit_peers.uniform(bits))
        for bits in qvit_peers.WIDTHS
    ),
    Contender("qvit_mixed", "qvit head-wise mixed, 3-bit budget", ENGINE, FROZEN, qvit_peers.mixed),
    *(
        Contender(
            f"qvit_{name}_{runtime}",
            f"qvit {title}, ONNX in {in_words}",
            imports,
            (*FROZEN, qvit_onnx_peers.export),
            load(name),
            restrictable=False,
        )
        for name, title in (("4", "4/4"), ("mixed", "head-wise mixed"))
        for runtime, in_words, imports, load in (
            ("ort", "ONNX Runtime", ORT, qvit_onnx_peers.in_onnxruntime),
            ("openvino", "OpenVINO", OPENVINO, qvit_onnx_peers.in_openvino),
        )
    ),
    Contender(
        "qvit_ivit",
        "qvit integer-only 8/8 (I-ViT)",
        ENGINE,
        (network.float_model, qvit_peers.integer_only),
        qvit_peers.ivit_program,
    ),
)
