"""Conformance suites, for perdure's own implementations and for those from outside.

A suite is a pytest base class: subclass it in your tests, give the fixture that it asks for, and
every promise of the protocol's docstrings is checked. This package needs pytest (the extra `test`).
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("perdure.testing.stores", "perdure.testing.drivers")
