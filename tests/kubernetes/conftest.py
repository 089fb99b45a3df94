"""One cluster and one object store for all tests on Kubernetes, and a namespace with an operator of
its own for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.place import Place
from tests.kubernetes.place import place as a_place
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.s3 import Bucket
from tests.servers.s3 import bucket as a_bucket


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """An object store that speaks S3."""
    with a_bucket() as made:
        yield made


@pytest.fixture
def place(cluster: Cluster, bucket: Bucket) -> Iterator[Place]:
    """A namespace with an operator."""
    with a_place(cluster, bucket) as made:
        yield made
