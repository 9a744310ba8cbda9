"""Whole replicas, a simulated server, network and clock: one integer seed decides everything.

``loop`` is an event loop on virtual time; ``server`` what Dakera promises, as a pure object;
``network`` what happens between; ``device`` a journal and its processes; ``schedule`` what a seed
makes all of them do; ``oracle`` what must then be true; ``simulation`` one run; ``shrink`` the
shortest schedule that still fails; ``run`` the command. Start with `docs/testing.md`.
"""
