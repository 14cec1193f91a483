"""The command line: one file a command group.

The entry point is the function ``octavo.cli.main``. A command imports what it needs when it runs,
so that ``octavo --help`` answers at once.
"""

from octavo.cli.application import app, main

__all__ = ["app", "main"]
