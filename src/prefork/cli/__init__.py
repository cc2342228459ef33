"""The `prefork` command: its command line, its settings, and its output."""
