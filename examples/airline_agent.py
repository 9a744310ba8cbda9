"""An airline agent without a network: its model and tools replay a recorded conversation.

In the recording, a live model talks to a fictitious customer and calls the tools of an airline.
Here the Agents SDK runs the conversation again, turn by turn: `RecordedModel` returns the recorded
answers of the model, and the tools return their recorded outputs. With a live model, only the tool
outputs are recorded.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agents import Agent, ModelResponse, Tool, Usage, function_tool
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.models.interface import Model
from agents.tool_context import ToolContext
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage
from typing_extensions import TypedDict

CONVERSATIONS = Path(__file__).parent / "data" / "airline-conversations.jsonl"
CONVERSATION = "airline-21-0"  # ten turns, four tools: a customer needs an earlier flight

Item = dict[str, Any]


class Recording:
    """One recorded conversation, split into turns: a user message and the items that follow it."""

    def __init__(self, session: str = CONVERSATION, file: Path = CONVERSATIONS) -> None:
        lines = file.read_text(encoding="utf-8").splitlines()
        self.items: list[Item] = {
            line["session"]: line["items"] for line in map(json.loads, lines)
        }[session]
        self.turns: dict[str, list[Item]] = {}
        for item in self.items:
            if item.get("role") == "user":
                answers = self.turns[item["content"]] = []
            else:
                answers.append(item)
        # The last user message of the recording has no answer.
        self.turns = {text: answers for text, answers in self.turns.items() if answers}

    @property
    def questions(self) -> list[str]:
        """Return the user messages, in order."""
        return list(self.turns)

    def tool_output(self, name: str, arguments: str) -> str:
        """Return the recorded output of a tool for these arguments, which are JSON."""
        call = (name, json.loads(arguments))
        outputs = {i["call_id"]: i["output"] for i in self.items if "output" in i}
        for item in self.items:
            if item.get("type") != "function_call":
                continue
            if (item["name"], json.loads(item["arguments"])) == call:
                return str(outputs[item["call_id"]])
        return f"Error: the recording has no call of {name} with {arguments}"


class RecordedModel(Model):
    """A model that returns the recorded answer to its input.

    It uses nothing but the input, so it fails if the session lost or reordered the history.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        """Return the recorded answer to the last user message, up to the next tool call.

        The number of tool outputs after that message decides which part of the answer comes next.
        """
        items: list[Any] = [{"role": "user", "content": input}] if isinstance(input, str) else input
        last_user = max(n for n, item in enumerate(items) if item.get("role") == "user")
        outputs = sum(item.get("type") == "function_call_output" for item in items[last_user:])
        step: list[Any] = []
        for item in self.recording.turns[items[last_user]["content"]]:
            if item["type"] == "function_call_output":
                outputs -= 1
            elif outputs == 0:
                step.append(
                    ResponseFunctionToolCall(**item)
                    if item["type"] == "function_call"
                    else ResponseOutputMessage(**item)
                )
        return ModelResponse(output=step, usage=Usage(requests=1), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Raise an error: streams are not recorded."""
        raise RuntimeError("the recorded model cannot stream; use Runner.run")


class Flight(TypedDict):
    """One flight of a reservation."""

    flight_number: str
    date: str


class Passenger(TypedDict):
    """One passenger of a reservation."""

    first_name: str
    last_name: str
    dob: str


class Payment(TypedDict):
    """A payment method and the amount that it pays."""

    payment_id: str
    amount: int


def airline_tools(recording: Recording) -> list[Tool]:
    """Return the tools of the airline; the recording supplies their outputs."""

    def recorded_output(call: ToolContext[None]) -> str:
        return recording.tool_output(call.tool_name, call.tool_arguments)

    @function_tool
    def get_user_details(call: ToolContext[None], user_id: str) -> str:
        """Get the profile of a customer, with payment methods and reservations."""
        return recorded_output(call)

    @function_tool
    def get_reservation_details(call: ToolContext[None], reservation_id: str) -> str:
        """Get one reservation with its flights, passengers and payments."""
        return recorded_output(call)

    @function_tool
    def search_direct_flight(
        call: ToolContext[None], origin: str, destination: str, date: str
    ) -> str:
        """Search direct flights between two airports (three letters each) on a day (YYYY-MM-DD)."""
        return recorded_output(call)

    @function_tool
    def book_reservation(
        call: ToolContext[None],
        user_id: str,
        origin: str,
        destination: str,
        flight_type: str,
        cabin: str,
        flights: list[Flight],
        passengers: list[Passenger],
        payment_methods: list[Payment],
        total_baggages: int,
        nonfree_baggages: int,
        insurance: str,
    ) -> str:
        """Book the flights and take the payment."""
        return recorded_output(call)

    return [get_user_details, get_reservation_details, search_direct_flight, book_reservation]


def airline_agent(recording: Recording, *, live: bool = False) -> Agent[None]:
    """Return an SDK agent with function tools; its model is recorded unless `live`."""
    return Agent(
        name="Airline",
        instructions="You help customers of an airline. Look things up before you answer.",
        tools=airline_tools(recording),
        model=None if live else RecordedModel(recording),
    )
