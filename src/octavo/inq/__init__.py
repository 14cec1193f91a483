"""INQ, incremental network quantization: the order of freezing, the parametrization that holds
frozen weights, the stages.
"""
