"""Run the command ``cached-session`` as ``python -m cached_session``."""

from cached_session.cli.main import main

if __name__ == "__main__":
    main()
