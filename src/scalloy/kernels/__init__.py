"""Fast kernels for counts of many genes, on the CPU (numba) and on the GPU (Triton)."""
