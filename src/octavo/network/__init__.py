"""All that octavo knows of a model: the kinds of its layers, the way to call it, the inputs that
each layer sees, and the outputs that it returns.
"""
