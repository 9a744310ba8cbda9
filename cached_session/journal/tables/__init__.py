"""The journal's tables: a module for each group of them, with the SQL that reads and writes it."""
