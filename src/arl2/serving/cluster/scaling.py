"""How many workers there are: as many as the streams' share of real time needs. Ray Serve's controller calls this."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

SHARE = "share"  # of real time that a worker's streams take; what workers report
WANTED = 0.7  # of a worker: the rest is for prompt changes, waking streams, and a stream that moves here


def by_share(context: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
    """Workers wanted, for ``AutoscalingPolicy``; Ray applies the bounds and delays of its configuration."""
    reported = (context.aggregated_metrics or {}).get(SHARE) or {}
    shares = [share for worker, share in reported.items() if worker in set(context.running_replicas)]
    if not shares:
        return context.target_num_replicas, {}
    return max(1, math.ceil(sum(shares) / WANTED)), {}
