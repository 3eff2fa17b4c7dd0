"""The driver of a run on Ray: scheduler, actors, poison isolation."""
