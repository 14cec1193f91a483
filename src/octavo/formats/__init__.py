"""What one weight may be: powers of two, sums of powers of two, the width that names them, and
their common Codebook.

Tensors only: nothing here knows a module, a file or a screen.
"""
