"""Other frameworks' histories over a `CachedSession`: one module each, loaded by whoever uses it.

`langchain`, `pydantic_ai`, `llama_index` and `strands` need the extra of their name. What they
share is here: the thread for synchronous methods, and the form in which messages are stored.
"""

from __future__ import annotations

from cached_session.adapters.bridge import Bridge

__all__ = ["Bridge"]
