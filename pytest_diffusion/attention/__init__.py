"""Attention to text: its recording during a pipeline call, and the recorded runs that the checks use."""
