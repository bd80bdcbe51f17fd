"""`python -m pneumo_lib` is `pneumo`."""

from pneumo_lib.cli import main

main()
