"""qvit-runtime: read, check and run `.qvit` programs, low-bit integer Vision Transformers. No torch anywhere."""

from importlib.metadata import version

from .artifact import ArtifactError as ArtifactError
from .artifact import load as load
from .artifact import save as save
from .check import check as check
from .check_data import ProgramError as ProgramError
from .engine import Engine as Engine
from .interpreter import run as run
from .interpreter import trace as trace
from .program import Program as Program

__version__ = version("qvit-runtime")
