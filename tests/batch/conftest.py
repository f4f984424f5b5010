"""Fixtures of the tests that stop one job in many ways."""

from tests.helpers.jobs import prompts, whole  # noqa: F401
