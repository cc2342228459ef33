"""The version of this package; the build reads it from here, and so it must import nothing."""

__version__ = "0.1.0"
