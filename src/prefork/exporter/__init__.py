"""The process of `--metrics`: it answers scrapers and browsers, so that neither the supervisor nor a worker does."""
