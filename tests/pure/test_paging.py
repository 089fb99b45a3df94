"""The pages of the API's lists."""

from __future__ import annotations

import pytest

from perdure.server.api.verbs import page_of


@pytest.mark.parametrize(
    ("rows", "page"),
    [([], ([], None)), ([1], ([1], None)), ([1, 2], ([1, 2], None)), ([1, 2, 3], ([1, 2], 2))],
)
def test_a_row_too_many_means_another_page(
    rows: list[int], page: tuple[list[int], int | None]
) -> None:
    """If one row more than a page was read, the last row of the page leads to the next page."""
    assert page_of(rows, 2) == page
