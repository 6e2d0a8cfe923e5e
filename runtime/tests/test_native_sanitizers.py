"""The native unit tests under ASan with UBSan, and under TSan: minutes, so only `pytest -m slow`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[1]
TOOLS = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_native_unit_tests(sanitizers, tmp_path):
    cmake = shutil.which("cmake", path=TOOLS)
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("needs cmake and a C++ compiler")
    configure = [cmake, "-S", str(RUNTIME), "-B", str(tmp_path), "-DQVIT_TESTS=ON", f"-DQVIT_SANITIZE={sanitizers}"]
    for command in (configure, [cmake, "--build", str(tmp_path), "-j2"], [str(tmp_path / "qvit_native_tests")]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed checks" in done.stdout
