"""Profiles whose slots are plain where a test says nothing of them: as what it compares with computes.

The default, `auto`, is settled by whoever has a model and a profile (engine/slots_check.py).
"""

from collections.abc import Mapping
from typing import Any

from scope_cli.settings import load
from scope_cli.settings.load import DEFAULT_PROFILE, LoadedProfile
from scope_cli.settings.schema import Profile

PLAIN_SLOTS = ["--set", "cache.kv=plain"]  # on a command line


def load_profile(name: str = DEFAULT_PROFILE, overrides: Mapping[str, Any] | None = None) -> LoadedProfile:
    return load.load_profile(name, overrides).with_slots("plain")


def profile_of(tree: Mapping[str, Any]) -> Profile:
    return Profile.model_validate({"cache": {"kv": "plain"}, **tree})
