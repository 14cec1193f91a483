"""Pruning: dynamic network surgery, and the masks of what is pruned already."""
