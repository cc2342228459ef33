"""Run the command by `python -m prefork`, without the script `prefork` on the path."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # The current directory, which -m puts first. The supervisor must not import from it, because it may belong to the
    # user of the workers. Remove it before the imports of prefork; a worker puts it back for the service.
    del sys.path[0]

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
