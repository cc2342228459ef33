"""`python -m inject`: every system call of the server fails, one in each run, and what becomes of it is judged."""
