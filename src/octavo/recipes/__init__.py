"""Recipes that come with octavo; ``octavo run NAME`` finds them by name."""
