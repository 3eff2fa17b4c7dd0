"""The driver of a run: in its own process, or on Ray, with scheduler, actors and poison isolation."""

import os

# Read by Ray when it is imported. Without it, Ray replaces 127.0.0.1 by an address that other machines reach.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
