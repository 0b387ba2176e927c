"""Measuring: the device, its fusion rules, and kernels inside composite graphs."""
