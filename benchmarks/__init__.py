"""Paired measurements against named peers; ``python -m benchmarks`` runs them all."""
