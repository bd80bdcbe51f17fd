"""`python -m pneumo_lib` is `pneumo`."""

import sys

from pneumo_lib import forks


def main() -> None:
    """The command line; a report's kernels are prepared while this process still imports what it needs itself."""
    if sys.argv[1:2] == ["report"] and "--help" not in sys.argv:
        forks.begin()
    from pneumo_lib.cli import main

    main()


if __name__ == "__main__":
    main()
