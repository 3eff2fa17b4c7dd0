"""Tests of what kills jobs. As `python -m tests.chaos.…` they find the same modules as under pytest."""

import sys
from pathlib import Path

_TESTS = Path(__file__).parent.parent
sys.path += [path for path in (str(_TESTS), str(_TESTS.parent / "cluster")) if path not in sys.path]
