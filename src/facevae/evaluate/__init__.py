"""Measure a trained model on held-out images."""
