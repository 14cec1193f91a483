"""The closed form: GPTQ, OBQ, least squares, the sequential pass, and the calibration over all of
them.
"""
