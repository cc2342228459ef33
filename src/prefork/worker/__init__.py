"""Run a worker process, from the fork to its exit."""
