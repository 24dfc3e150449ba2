"""Features of images: extractors by name, CLIP, Inception, and the store that keeps the results."""
