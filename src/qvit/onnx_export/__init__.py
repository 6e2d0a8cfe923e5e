"""onnx_export: Program -> ONNX file of QuantizeLinear, DequantizeLinear and float ops, for ONNX Runtime and OpenVINO.

    graph        nodes, constants, and how integers of 2, 4 and 8 bits are stored
    translation  where the buffers of the Program are in the graph
    products     quantization and integer products
    moves        ops that only move elements
    translate    one function per op; what is refused and why
    verify       every op against the interpreter, before anything is written
    export       all of it, to a file
    sessions     ONNX Runtime and OpenVINO behind one signature
    agreement    a runtime against the interpreter, in codes and classes

docs/onnx.md shows the graph and how to run it. Importing this package needs the extra `onnx`.
"""

try:
    import onnx as onnx
except ImportError as error:
    raise ImportError(
        "the ONNX export needs the package 'onnx', which is not installed; pip install 'qvit[onnx]'"
    ) from error

from .agreement import Agreement as Agreement
from .agreement import agreement as agreement
from .export import export_onnx as export_onnx
from .sessions import onnxruntime_session as onnxruntime_session
from .sessions import openvino_session as openvino_session
from .translate import OnnxExportError as OnnxExportError
from .verify import Verification as Verification
