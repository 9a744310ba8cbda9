"""The journal: one SQLite file that holds every session of a device. It never touches the network.

``schema`` documents the tables; ``connection`` owns the file, its threads and its transactions,
``opening`` makes its connections and ``outcome`` says how a call ends; ``writes``, ``apply``,
``arrivals`` and ``outbox`` are the transactions; ``reads`` and ``items`` the queries; ``codec`` is
how an item becomes text. ``salvage`` puts a fresh file in the place of a damaged one, and ``carry``
is what goes over.
"""
