"""The driver of a run: in its own process, or on Ray, with scheduler, actors and poison isolation."""
