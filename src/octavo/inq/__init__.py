"""INQ, incremental network quantization: the partition says which weights freeze next, the
parametrization keeps frozen weights still, and Incremental goes through the portions.
"""
