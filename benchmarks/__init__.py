"""Paired measurements against named peers; each module prints its table when run."""
