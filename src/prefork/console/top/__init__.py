"""`prefork top`: a live view of a running server.

`source.py` reads it, `facts.py` checks the status, and `rates.py` compares two readings. `model.py` keeps what is
shown, and `pages.py` and its parts make lines of it: all pure. `app.py` shows the lines by Textual.
"""
