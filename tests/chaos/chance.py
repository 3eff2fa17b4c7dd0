"""The size of the chaos tests, and the seed of its choices: `CHAOS_SIZE` and `CHAOS_SEED`, both printed by each test.

The seed is by default the date, so that each day other samples are drawn.
"""

import os
import random
from datetime import UTC, datetime
from typing import Final

SEED: Final = int(os.environ.get("CHAOS_SEED") or f"{datetime.now(UTC):%Y%m%d}")
SIZE: Final = int(os.environ.get("CHAOS_SIZE", "1"))
"""1 fits into CI; what is sampled there is sampled so many times as often."""


def chance(*about: object) -> random.Random:
    """Return a generator of its own for each purpose, so that one test's choices do not move another's."""
    return random.Random(" ".join(map(str, (SEED, *about))))


def dice() -> str:
    """Return what repeats this run, for the head of what a test prints."""
    return f"CHAOS_SEED={SEED} CHAOS_SIZE={SIZE}"
