"""Low-precision activations: quantizers of layer inputs, and their calibration."""
