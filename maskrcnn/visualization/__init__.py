"""Pictures, charts, maps, and the pages of a run."""
