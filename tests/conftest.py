"""Two test processes share two cores, so each keeps to one torch thread."""

import torch

torch.set_num_threads(1)
