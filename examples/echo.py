"""A model without a network: its answer shows which items the session gave it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, ModelResponse, Usage, set_tracing_disabled
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.models.interface import Model
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

set_tracing_disabled(True)  # otherwise the SDK sends traces to its own server


class EchoModel(Model):
    """A model that repeats the last user message and counts all of them."""

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        """Return an answer that depends on the input only."""
        items: list[Any] = [{"role": "user", "content": input}] if isinstance(input, str) else input
        messages = [item["content"] for item in items if item.get("role") == "user"]
        text = f"You said “{messages[-1]}”. I have heard {len(messages)} from you."
        message = ResponseOutputMessage(
            id=f"msg_{len(items)}",
            content=[ResponseOutputText(text=text, type="output_text", annotations=[])],
            role="assistant",
            status="completed",
            type="message",
        )
        return ModelResponse(output=[message], usage=Usage(requests=1), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Raise an error: the model cannot stream."""
        raise RuntimeError("this model cannot stream; use Runner.run")


def echo_agent() -> Agent[None]:
    """Return an SDK agent with this model."""
    return Agent(name="Echo", model=EchoModel())


def text_of(item: Any) -> str:
    """Return the text of a message."""
    content = item.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
