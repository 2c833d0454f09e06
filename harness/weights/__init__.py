"""Initial weights of every origin, matched to a model under the norm they were trained with."""
