"""``python -m cached_session`` is ``cached-session``."""

from cached_session.cli.main import main

if __name__ == "__main__":
    main()
