"""The command line: one file a command group."""

from octavo.cli.commands import app, main

__all__ = ["app", "main"]
