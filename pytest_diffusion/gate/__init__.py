"""The candidate against its baseline: parts, denoising, paired samples, and the decision on their differences."""
