"""The recipes that come with octavo."""

from pathlib import Path

__all__ = ["RECIPES"]

RECIPES = Path(__file__).parent
