"""The choice of backends, which what autograd computes again must share."""

import threading

from arl2.kernels.backends import DELTA_RULE, is_default, keeping_backends, requested_backend, use_backends


def asked() -> str:
    return requested_backend(DELTA_RULE, "auto")


def in_another_thread(run) -> list[str]:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(run()))
    thread.start()
    thread.join()
    return said


def test_a_request_is_kept_for_what_is_computed_again_in_another_thread():
    """As on a GPU, where the backward pass has a thread of its own."""
    with use_backends(delta_rule="blockwise"):
        again, plain = keeping_backends(asked), asked
        assert in_another_thread(plain) == ["auto"]
    assert in_another_thread(again) == ["blockwise"]
    with use_backends(delta_rule="naive"):
        assert again() == "blockwise"
        assert asked() == "naive"
    assert is_default()
