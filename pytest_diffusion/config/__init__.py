"""Settings, sources and thresholds: what is tested, with what, and against which limits; nothing heavy is imported here."""
