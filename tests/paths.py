"""Where the repository and its parts are, for tests that read files of it."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
