"""What a worker does that runs a whole program, which knows nothing of prefork: `prefork run`."""
