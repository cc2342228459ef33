"""Put the parts together: the only package that imports both `parent` and `worker`."""
