"""The model: operations, stamps, frontiers and what they make visible. Pure; no I/O of any kind."""
