"""Samples: generated once, in batches, stored on disk and reused."""
