"""The supervisor: no event loop, no threads, and it never imports the service."""
