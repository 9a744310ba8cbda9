"""Import of histories from other stores, and export of a session to a file."""
