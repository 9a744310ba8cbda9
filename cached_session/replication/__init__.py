"""The journal and the server, brought together: push, pull, claim, audit, and who does it when.

``link`` is what all of it works with; ``worker`` the loops; the rest are one idea each.
"""
