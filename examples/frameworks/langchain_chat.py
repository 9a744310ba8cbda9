"""LangChain on two devices, with a server that stops for a while.

python examples/frameworks/langchain_chat.py    (extras: langchain, devserver)
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.history import RunnableWithMessageHistory

from cached_session import SessionCache
from cached_session.adapters.langchain import CachedChatMessageHistory
from cached_session.devserver import DevServer


def chain_over(cache: SessionCache, *answers: str) -> RunnableWithMessageHistory:
    """Return a chain with the sessions of this device as history, and LangChain's fake model."""
    model = GenericFakeChatModel(messages=iter(AIMessage(answer) for answer in answers))
    return RunnableWithMessageHistory(
        model, lambda session_id: CachedChatMessageHistory(cache.session(session_id))
    )


async def main() -> None:
    """Begin one conversation on a phone and continue it on a laptop."""
    trip: RunnableConfig = {"configurable": {"session_id": "trip"}}
    with tempfile.TemporaryDirectory() as name, DevServer() as server:
        at = Path(name)
        async with (
            SessionCache(at / "phone.db", url=server.url) as phone,
            SessionCache(at / "laptop.db", url=server.url) as laptop,
        ):
            on_phone = chain_over(phone, "Oslo, noted.", "By train, noted.")
            on_laptop = chain_over(laptop, "On Friday, noted.")
            await on_phone.ainvoke("We go to Oslo", config=trip)
            await phone.flush(timeout=30)
            await laptop.sync(timeout=30)

            server.stop()
            await on_phone.ainvoke("By train", config=trip)
            await on_laptop.ainvoke("On Friday", config=trip)
            print(f"offline: {phone.status().pending} + {laptop.status().pending} pending")

            server.start()
            for device in (phone, laptop, phone):
                await device.sync(timeout=30)
            here = await CachedChatMessageHistory(phone.session("trip")).aget_messages()
            there = await CachedChatMessageHistory(laptop.session("trip")).aget_messages()
            assert here == there
            for message in here:
                print(f"  {message.type}: {message.content}")
            print(f"synced: {phone.status().pending} + {laptop.status().pending} pending")


if __name__ == "__main__":
    asyncio.run(main())
