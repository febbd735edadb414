"""Other ways than the gated delta rule to write a recurrent state: gates per channel, and one joint write per frame."""

from arl2.kernels.delta_forms.by_frame import frame_delta_state as frame_delta_state
from arl2.kernels.delta_forms.chunked import channel_delta_state as channel_delta_state
