"""Subscribers to events."""
