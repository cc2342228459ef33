"""`python -m prefork`: the command, for a machine with no `prefork` on the path."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # The current folder, which -m puts first: the supervisor must not import from it, as it may be the workers' user's.
    # Before our own imports, and a worker puts it back for the service.
    del sys.path[0]

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
