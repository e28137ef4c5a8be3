"""Turn raw images into the prepared set."""
