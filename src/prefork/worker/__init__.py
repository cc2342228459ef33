"""What a child process runs, from the fork to its exit."""
