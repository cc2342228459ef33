"""What a terminal shows of a running server. Nothing here runs in a server's processes."""
