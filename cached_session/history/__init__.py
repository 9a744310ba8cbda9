"""The model of a history: operations, stamps and frontiers. Pure functions and values, no I/O."""
