"""One thread for torch: sums come out the same on every machine, and runs side by side do not fight for cores."""

import torch

torch.set_num_threads(1)
