"""Where raw images come from, one module a source."""
