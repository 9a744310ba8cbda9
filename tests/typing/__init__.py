"""Modules of a user, which are checked by type checkers and never run."""
