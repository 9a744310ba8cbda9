"""The server's side of the wire: names, memories, verdicts, and the client that speaks to Dakera.

Nothing here knows the journal. Every foreign error is mapped here, and nowhere else.
"""
