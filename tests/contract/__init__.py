"""The server behaviour on which replication depends, tested on Dakera and everything that replaces
it."""
