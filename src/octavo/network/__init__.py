"""What octavo knows of a model: its layers and their kinds, how it is called, what it returns, its
inputs' moments.
"""
