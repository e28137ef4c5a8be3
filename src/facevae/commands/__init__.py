"""What the `facevae` command can do."""
