"""`python -m sim` is the `roofserve` command."""

from sim.cli import main

main()
