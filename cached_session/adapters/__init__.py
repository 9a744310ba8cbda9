"""Message histories of other frameworks, stored in a `CachedSession`; a module per framework.

`langchain`, `pydantic_ai`, `llama_index` and `strands` each need the extra of the same name.
`Bridge` runs the asynchronous calls for their synchronous methods.
"""

from __future__ import annotations

from cached_session.adapters.bridge import Bridge

__all__ = ["Bridge"]
