"""`python -m dgan` and `torchrun -m dgan`: the `dgan` command."""

from dgan.cli import main

main()
