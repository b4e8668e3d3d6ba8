"""`python -m thinbert`: the command line."""

from thinbert.cli import main

main()
