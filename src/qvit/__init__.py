"""qvit: learn how many bits every tensor and attention head of a Vision Transformer needs, and run the integer model.

    model  = timm.create_model("deit_tiny_patch16_224", pretrained=True)
    qmodel = qvit.quantize(model, qvit.Spec())
    qvit.calibrate(qmodel, train_loader)
    qvit.fit(qmodel, train_loader, budget=qvit.Budget(gbitops=12.883))
    qvit_runtime.save(qvit.freeze(qmodel), "deit_tiny.qvit")
    qvit.export_onnx(qvit.freeze(qmodel), "deit_tiny.onnx")

The other methods have the same verbs on their own options, in a module each:

    qmodel = qvit.methods.fqvit.quantize(model, qvit.FQViT(attention_bits=4))
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from . import methods as methods
from .analysis import analyze as analyze
from .analysis.config import AnalysisConfig as AnalysisConfig
from .analysis.data import open_analysis_data as open_analysis_data
from .bits.allocate import Lagrangian as Lagrangian
from .bits.allocate import Published as Published
from .bits.budget import Budget as Budget
from .bits.budget import BudgetError as BudgetError
from .bits.cost import cost as cost
from .bits.init_bits import apply_init_bits as apply_init_bits
from .calibration.calibrate import calibrate as calibrate
from .calibration.range_observers import LeastSquares as LeastSquares
from .calibration.range_observers import MeanSquaredError as MeanSquaredError
from .calibration.range_observers import MinMax as MinMax
from .calibration.range_observers import MovingAverage as MovingAverage
from .calibration.range_observers import Percentile as Percentile
from .data import DataConfig as DataConfig
from .data import DataError as DataError
from .data import open_data as open_data
from .data import preprocess_of as preprocess_of
from .data import resolve_data as resolve_data
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.paired import Paired as Paired
from .evaluation.paired import paired as paired
from .freezing.emitter import FreezeError as FreezeError
from .freezing.freeze import freeze as freeze
from .methods import TSPTQ as TSPTQ
from .methods import FQViT as FQViT
from .methods import IViT as IViT
from .methods import PostTraining as PostTraining
from .methods import QViTIRM as QViTIRM
from .network.convert import quantize as quantize
from .network.support import UnsupportedModelError as UnsupportedModelError
from .pipeline.compare import compare as compare
from .pipeline.finished import load as load
from .pipeline.run import run_recipe as run_recipe
from .quantizers.quantizer import UncalibratedError as UncalibratedError
from .settings.recipe import RecipeError as RecipeError
from .settings.recipe import load_recipe as load_recipe
from .spec import ClippedGradient as ClippedGradient
from .spec import FixedBits as FixedBits
from .spec import LearnedBits as LearnedBits
from .spec import MidRise as MidRise
from .spec import MidTread as MidTread
from .spec import PassThroughGradient as PassThroughGradient
from .spec import PerChannel as PerChannel
from .spec import PerHead as PerHead
from .spec import PerTensor as PerTensor
from .spec import SharedScale as SharedScale
from .spec import SingleRange as SingleRange
from .spec import SingleScale as SingleScale
from .spec import Spec as Spec
from .spec import SwitchableScale as SwitchableScale
from .system.interruption import InterruptionError as InterruptionError
from .system.runs import CheckpointError as CheckpointError
from .system.storage import StorageError as StorageError
from .training.feature_distill import FeatureDistillation as FeatureDistillation
from .training.fit import fit as fit
from .training.fit_config import FitConfig as FitConfig
from .training.nonfinite import NonFiniteLossError as NonFiniteLossError

__version__ = version("qvit")

if TYPE_CHECKING:
    from .onnx_export import export_onnx as export_onnx


def __getattr__(name: str) -> object:
    """export_onnx, which needs the extra `onnx`, is imported when it is asked for."""
    if name == "export_onnx":
        from .onnx_export import export_onnx

        return export_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
