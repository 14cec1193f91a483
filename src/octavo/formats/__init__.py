"""Number formats: the values that a weight may take, as codebooks, and the widths that name them.

This folder knows tensors only: no module, no file and no screen.
"""
