"""Helpers around SQLite: item encoding, error mapping, file identity, tracked connections."""
