"""DNQ, dynamic network quantization: a policy learns each layer's bits; its environment, its
gradient and its rivals.
"""
