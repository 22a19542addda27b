from __future__ import annotations

from hypothesis import settings

# a deadline would assert wall time, which depends on what else the machine does
settings.register_profile("theory", deadline=None)
settings.load_profile("theory")
