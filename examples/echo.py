"""A model that needs no network: it tells what it was given. So what a session kept can be seen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, ModelResponse, Usage, set_tracing_disabled
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.models.interface import Model
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

set_tracing_disabled(True)  # the SDK's traces would go to a server of its own


class EchoModel(Model):
    """Repeats the last thing a person said, and says how many things that were."""

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        """The answer, made of nothing but the input."""
        items: list[Any] = [{"role": "user", "content": input}] if isinstance(input, str) else input
        said = [item["content"] for item in items if item.get("role") == "user"]
        text = f"You said “{said[-1]}”. I have heard {len(said)} from you."
        message = ResponseOutputMessage(
            id=f"msg_{len(items)}",
            content=[ResponseOutputText(text=text, type="output_text", annotations=[])],
            role="assistant",
            status="completed",
            type="message",
        )
        return ModelResponse(output=[message], usage=Usage(requests=1), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """The examples run whole turns."""
        raise RuntimeError("this model has no stream; use Runner.run")


def echo_agent() -> Agent[None]:
    """A real agent of the SDK over that model."""
    return Agent(name="Echo", model=EchoModel())


def text_of(item: Any) -> str:
    """What a person reads of a message: its text, whoever wrote it."""
    content = item.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
