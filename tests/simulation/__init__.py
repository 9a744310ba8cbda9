"""Complete replicas on a simulated server, network and clock. One integer seed decides everything.

``loop`` is an event loop on virtual time, ``server`` a model of Dakera without I/O, ``network`` the
faults between devices and server, ``device`` a journal and its processes, ``schedule`` the steps of
a seed, ``oracle`` the invariants, ``simulation`` one run, ``shrink`` the search for the shortest
schedule that still fails, and ``run`` the command. Start with `docs/testing.md`.
"""
