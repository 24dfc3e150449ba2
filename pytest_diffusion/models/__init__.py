"""Models: loading by name, capabilities, one denoiser call, schedulers, noise levels, latents."""
