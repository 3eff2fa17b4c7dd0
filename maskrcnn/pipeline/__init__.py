"""From inputs to the tables of a run: manifest, plan, worker, receipts, reduce."""
