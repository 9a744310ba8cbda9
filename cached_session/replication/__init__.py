"""Replication between the journal and the server.

``replicator`` runs the loops: ``push_loop``, ``pull_loop``, ``audit_loop`` and ``event_listener``.
``leader`` elects the process that pushes, ``schedule`` decides which session is due. One push is in
``push`` (decided by ``push_plan`` and ``store_plan``), one pull in ``pull``, one audit in ``audit``
and a confirmed pop in ``confirmed_pop``. ``pauses`` delays attempts after a failure. All these
modules work on one ``context``.
"""
