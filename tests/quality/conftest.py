"""Property tests here have no deadline: how long one example takes says more about the machine's other load."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
