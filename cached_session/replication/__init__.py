"""The journal and the server, brought together: push, pull, claim, audit, and who does it when.

``worker`` owns the tasks: ``pusher``, ``puller``, ``auditor`` and ``listen``. ``schedule`` decides
when, ``leader`` which process. One round of one session is in ``push``, ``pull`` (with ``pages``,
``incoming`` and ``holes``), ``claim`` and ``audit``. ``context`` is what all of it works with.
"""
