"""What holds for the unit tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("suite", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("suite")
