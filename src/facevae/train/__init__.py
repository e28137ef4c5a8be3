"""Training: the loop, a step of it, its optimisers, its batches, its processes, its progress on disk."""
