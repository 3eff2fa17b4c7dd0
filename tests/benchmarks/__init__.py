"""Benchmarks, each run by `python -m tests.benchmarks.NAME` from the project's folder."""

import sys
from pathlib import Path

# Where pytest looks for the modules that tests share, too.
if (TESTS := str(Path(__file__).parent.parent)) not in sys.path:
    sys.path.insert(0, TESTS)
