"""Models by name and by what they can do: loading, capabilities, one call, schedulers, noise levels, latents."""
