"""One open journal and its replicator, shared by all sessions over that journal in a process."""
