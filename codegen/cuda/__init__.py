"""CUDA families: templates over a header-free vocabulary."""
