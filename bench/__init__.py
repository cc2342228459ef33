"""How fast prefork is, side by side with its peers: `python -m bench`, or `make bench`.

Not part of the package that is installed. Nothing of it is imported by prefork.
"""
