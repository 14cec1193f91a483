"""What octavo knows of a model: the kinds of its layers, how it is called, the inputs that each
layer sees, and the outputs that it returns.
"""
