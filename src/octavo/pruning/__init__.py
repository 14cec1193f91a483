"""Pruning: dynamic network surgery, and the masks of the weights that are pruned already."""
