"""Attention to text: recorded as it happens, and what a run of it shows."""
