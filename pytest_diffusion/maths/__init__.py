"""Plain maths of diffusion quality: tensors in, floats out, float64 inside; no diffusers, no global random state."""
