"""Step curves for other programs: TensorBoard by default, W&B and MLflow where asked for.

A tracker is told the rows of the journal, after the journal. It is never part of a run's identity,
and one that fails is left out for the rest of the run: the run says so and goes on.
"""
