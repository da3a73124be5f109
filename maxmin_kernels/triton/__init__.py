"""Triton kernels, one file a family: formulas, configuration, kernels, launchers. ``ops`` imports a file when it is needed."""
