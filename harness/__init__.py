"""The machine that runs every task behind one `norm` switch; it knows no task."""
