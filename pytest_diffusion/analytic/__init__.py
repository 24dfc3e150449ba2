"""Closed-form diffusion models: for Gaussian data, mixtures and finite data sets the ideal denoiser needs no training."""
