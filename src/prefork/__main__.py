"""`python -m prefork`: the command, for who has no `prefork` on the path."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
