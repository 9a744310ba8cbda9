"""The command line: calls the public API and prints text or JSON. No other package imports it."""
