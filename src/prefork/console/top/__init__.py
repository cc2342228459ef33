"""`prefork top`: a live view of a running server.

`facts.py` reads a status, `rates.py` compares two of them, `pages.py` and its parts turn them into lines, and `app.py`
shows the lines. Only `app.py` and its widgets import Textual; everything else is pure but for `source.py`.
"""
