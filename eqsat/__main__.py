"""`python -m eqsat` and the `eqsat` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from eqsat.cli import run  # click is loaded only for the command line

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
