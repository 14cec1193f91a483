"""Coders that turn codes into bytes near their entropy."""
