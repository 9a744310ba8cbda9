"""Moving in and out: other backends' histories into sessions, and a session into a file."""
