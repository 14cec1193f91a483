"""The packed network: the quantized tensor, the manifest, the container and its codes."""
