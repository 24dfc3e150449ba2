"""The command `pytest-diffusion`: the cache, saved baselines, and the comparison of two reports."""
