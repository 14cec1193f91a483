"""The command line: one file a command group.

The entry point is the function ``octavo.cli.main``. A command imports what it needs when it runs,
so that ``octavo --help`` answers at once.
"""

from typing import TYPE_CHECKING

from octavo._interruption import listening

if TYPE_CHECKING:
    from octavo.cli.application import app
else:

    def __getattr__(name):
        """Import the application when it is first used."""
        if name != "app":
            raise AttributeError(f"module 'octavo.cli' has no attribute {name!r}")
        from octavo.cli.application import app

        return app


__all__ = ["app", "main"]


def main() -> None:
    """Run the command that ``sys.argv`` names; Ctrl-C ends it without a traceback even while its
    modules are imported.
    """
    with listening():
        from octavo.cli.application import main as run

        run()
