"""Measurements, limits and verdicts, and the errors that carry them; plain Python."""
