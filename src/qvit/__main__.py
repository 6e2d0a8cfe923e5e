"""`python -m qvit`, for launchers such as `accelerate launch -m qvit run RECIPE`."""

import sys

from .cli import main

sys.exit(main())
