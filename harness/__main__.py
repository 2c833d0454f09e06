"""So that ``python -m harness`` is the command line, where no console script is installed."""

from harness.cli import main

main()
