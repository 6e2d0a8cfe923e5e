"""qvit-runtime: read, check and run `.qvit` programs, low-bit integer Vision Transformers. No torch anywhere."""

from .interpreter import run as run
from .interpreter import trace as trace
from .program import Program as Program
