"""One thread for torch: sums come out the same on every machine, and runs side by side do not fight for cores.

Triton's kernels run in its interpreter where there is no GPU, which it has to know before it is imported.

And one random state at the start of each test, so that what a test draws does not depend on which ones ran before it.
"""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, run directory) of a finished run through the command line: see `toy_pipeline`."""
    pytest.importorskip("mlxtend")
    from toy_pipeline import make_run

    return make_run(tmp_path_factory.mktemp("pipeline"))
