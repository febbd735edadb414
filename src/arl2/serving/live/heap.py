"""Memory that sleeping streams have freed goes back to the system."""

import ctypes
import sys


def give_back() -> bool:
    """Have the C library return what it keeps free; whether it had any. Takes some milliseconds; any thread may call.

    glibc keeps freed blocks of many threads for later. After a hundred streams have fallen asleep that was half of the
    process. Elsewhere than on Linux, and with other C libraries, nothing is done.
    """
    if sys.platform != "linux":
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
