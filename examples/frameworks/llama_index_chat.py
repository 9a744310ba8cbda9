"""LlamaIndex's chat engine in synchronous code, with a journal that syncs in the background.

python examples/frameworks/llama_index_chat.py    (extras: llama-index, devserver)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer

from cached_session import SessionCache
from cached_session.adapters import Bridge
from cached_session.adapters.llama_index import CachedChatStore
from cached_session.devserver import DevServer


def engine_over(store: CachedChatStore, key: str) -> SimpleChatEngine:
    """Return an engine whose memory is one chat of the store."""
    memory = ChatMemoryBuffer.from_defaults(
        token_limit=3000, chat_store=store, chat_store_key=key, tokenizer_fn=str.split
    )
    return SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory)


def main() -> None:
    """Chat as two users on one device, then read both chats on another device."""
    with tempfile.TemporaryDirectory() as name, DevServer() as server, Bridge() as bridge:
        at = Path(name)
        with bridge.enter(SessionCache(at / "phone.db", url=server.url)) as cache:
            store = CachedChatStore(cache, bridge=bridge)
            engine_over(store, "ada").chat("My bag is lost")
            engine_over(store, "bob").chat("Hello")
            print("chats:", ", ".join(store.get_keys()))
            removed = store.delete_last_message("ada")
            print("removed:", removed.role.value if removed else None)
            bridge.run(cache.flush, 30)
        with bridge.enter(SessionCache(at / "laptop.db", url=server.url)) as cache:
            store = CachedChatStore(cache, bridge=bridge)
            for key in ("ada", "bob"):
                contents = [message.content for message in store.get_messages(key)]
                print(f"{key}: {len(contents)} messages, the first: {contents[0]}")


if __name__ == "__main__":
    main()
