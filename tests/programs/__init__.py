"""Servers that other people wrote, with their own clients: what `prefork run` must run unchanged."""
