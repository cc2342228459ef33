"""What a client in a terminal uses of a running server: its workers, its connections, what each waits for."""
