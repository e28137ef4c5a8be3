"""Distributions over the latent, from which samples are decoded."""
