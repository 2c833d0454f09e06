"""From tables as data to the runs they need, and from records to tables, figures and verdicts."""
