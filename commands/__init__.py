"""The command line, one file a command, with `add_arguments(parser)`, which also names the function that runs.

What is slow to import is imported when a command runs.
"""

import argparse
import sys
from collections.abc import Sequence


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Runs what the arguments name; gives the exit status. A caller's mistake is one line on standard error and 2."""
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("; ".join((f"{parser.prog}: interrupted", *map(str, interrupt.args))), file=sys.stderr)
        return 130
    return 0
