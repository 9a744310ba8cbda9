"""The command line: arguments in, the public API called, text or JSON out. Nothing imports it."""
