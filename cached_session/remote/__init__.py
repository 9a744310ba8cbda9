"""Communication with a Dakera server: ids, wire format, verdicts on answers, and HTTP client.

No module of this package uses the journal. This package maps errors of the HTTP library to its own
errors.
"""
