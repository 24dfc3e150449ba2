"""Data from files and hubs: reference images, prompts and rows, and images as tensors."""
