"""The journal: one SQLite file that holds every session of a device. It never touches the network.

``schema`` documents the tables. ``connection`` is a journal as its callers see it, over ``jobs``,
the thread that writes, and ``asides``, reads in threads of their own; ``file`` is what all of them
have open, ``opening`` makes its connections, and ``outcome`` says how a call ends. ``writes``,
``apply``, ``arrivals`` and ``outbox`` are the transactions; ``reads`` and ``items`` the queries;
``codec`` is how an item becomes text. ``salvage`` puts a fresh file in the place of a damaged one,
and ``carry`` is what goes over.
"""
