"""Graph to kernels: fusion rules, detection, work, and the numbers that describe a kernel."""
