"""Quantizers of layer inputs, and their calibration."""
