"""One page of everything that was measured: self-contained, so that it can be mailed and shown."""
