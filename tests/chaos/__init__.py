"""Chaos: processes killed at random places, and inputs nobody meant (``python -m tests.chaos``).

``killing`` ends children with SIGKILL; ``runs`` and ``files`` hold what they leave against what it
should be. ``inputs`` draws and damages; ``fuzz`` judges what commands and loaders make of it.
"""
