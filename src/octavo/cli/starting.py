"""The command that writes the files to begin with: ``init``."""

from pathlib import Path

from octavo.cli.options import Quiet, out, print_written
from octavo.errors import RecipeError

__all__ = ["init"]

STARTER = Path(__file__).parent / "starter"
FILES = ("my_task.py", "my_recipe.yaml")
NEXT = """
They run as they stand, on a small network of their own:
  octavo inspect my_task.py:MyTask   see which layers can be quantized
  octavo run my_recipe.yaml          quantize it, and write the report
Then put your network and data into my_task.py, in the places marked YOURS."""


def init(quiet: Quiet = False) -> None:
    """Write a task and a recipe to begin with, for your own network: my_task.py and my_recipe.yaml.

    It asks nothing, and writes over nothing. Both files run as they stand.

    Example: `octavo init`
    """
    there = [name for name in FILES if Path(name).exists()]
    if there:
        raise RecipeError(
            f"{', '.join(there)}: there already; move it away, or begin in another folder"
        )
    for name in FILES:
        Path(name).write_bytes((STARTER / name).read_bytes())
        if not quiet:
            print_written(Path(name))
    if not quiet:
        out.print(NEXT, soft_wrap=True, markup=False)
