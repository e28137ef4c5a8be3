"""From raw images to the prepared set."""
