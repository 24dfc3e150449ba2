"""Samples: made once, in batches, kept on disk and found again."""
