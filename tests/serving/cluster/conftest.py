"""One cluster on this machine for all tests of this folder that want it."""

from collections.abc import Iterator

import pytest

from cluster.running import Running, running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home, store = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("store")
    # A new front may take longer than the usual 30 seconds to come up on a busy machine. A stream that nobody watches
    # would sleep by then, and what a viewer has not seen of it would be gone.
    with running(home, store, point_every=3, sleep_after=300.0) as found:
        yield found
