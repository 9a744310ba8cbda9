"""The journal: one SQLite file with all sessions of a device. It does not use the network.

`journal` is the class that callers use. `history` and `imports` are the stores with caches, and
`tables/` has all others, with their SQL; `tables.schema` documents the tables. `writer` runs writes
on one thread, `readers` runs reads, and `connections` has the SQLite connections of both.
`recovery/` replaces a damaged file. `sqlite/` has helpers without SQL for any journal table.
"""
