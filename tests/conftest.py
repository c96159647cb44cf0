"""Fixtures for all tests."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import bundle  # noqa: F401 -- before onnxruntime: see there

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Headless Chromium, for one file: while playwright lives, asyncio.run fails in this thread."""
    from tests.browser import launch  # only the tests that open a page need playwright

    yield from launch()
