"""Post-training quantization (PTQ): settings, GPTQ, OBQ, least squares, and calibration."""
