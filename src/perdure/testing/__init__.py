"""Conformance suites for implementations of perdure's protocols, both perdure's own and external
ones.

A suite is a pytest base class. Subclass it in your tests and supply the fixture that the suite
needs. The tests then check every promise in the protocol's docstrings. This package needs pytest
(the extra `test`).
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("perdure.testing.stores", "perdure.testing.drivers")
