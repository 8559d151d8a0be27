"""`luthier`, `python -m luthier` and `accelerate launch -m luthier`."""

from luthier.cli.leave import leave
from luthier.cli.main import main


def start() -> None:
    """The command line as a process of its own."""
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            raise
        leave(ended.code or 0)
    leave(0)


if __name__ == "__main__":
    start()
