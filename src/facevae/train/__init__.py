"""Training: loop, epoch, step, optimisers, schedules, batches, processes, resume."""
