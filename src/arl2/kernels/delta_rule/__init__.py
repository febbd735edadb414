"""The gated delta rule (Yang, Kautz, Hatamizadeh, arXiv 2412.06464): the recurrence that writes memory."""

from arl2.kernels.delta_rule.dispatch import BACKENDS as BACKENDS
from arl2.kernels.delta_rule.dispatch import gated_delta_rule as gated_delta_rule
from arl2.kernels.delta_rule.dispatch import gated_delta_state as gated_delta_state
