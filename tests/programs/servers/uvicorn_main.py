"""uvicorn by `uvicorn.run` in a program of its own: HOST PORT."""

import sys

import uvicorn
from app import app


def main():
    uvicorn.run(app, host=sys.argv[1], port=int(sys.argv[2]), log_level="warning")


if __name__ == "__main__":
    main()
