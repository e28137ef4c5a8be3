"""Sources of raw images, one module for each."""
