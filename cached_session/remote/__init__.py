"""The server side: ids, wire format, verdicts on answers, and the HTTP client of a Dakera server.

No module here knows the journal. Errors of the HTTP library are mapped here, once.
"""
