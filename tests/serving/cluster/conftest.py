"""One cluster on this machine for all tests of this folder that want it."""

from collections.abc import Iterator

import pytest

from cluster.running import Running, running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("store"), point_every=3) as found:
        yield found
