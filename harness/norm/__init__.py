"""The switch: weight standardisation, the norm catalogue, and the surgery that swaps norms."""
