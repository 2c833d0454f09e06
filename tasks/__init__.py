"""The tasks, one folder each: model, data, loss, evaluation. They import harness, never back."""
