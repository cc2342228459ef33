"""Subscribers to events: log lines and the service manager. Nothing here decides anything for the server."""
