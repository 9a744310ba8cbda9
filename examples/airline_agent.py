"""An airline's agent that needs no network: its model and its tools replay a recorded conversation.

The conversation is a real one: a live model talked to a (made-up) customer and called the airline's
tools. Here the real Agents SDK runs it again, turn by turn: `RecordedModel` says what the model
said, the tools answer what they answered. With a live model, only the tools are recorded.
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
CONVERSATION = "airline-21-0"  # ten turns, four tools: a customer needs to be home sooner

Item = dict[str, Any]


class Recording:
    """One recorded conversation, cut into turns: what a person said and all that came of it."""

    def __init__(self, session: str = CONVERSATION, file: Path = CONVERSATIONS) -> None:
        lines = file.read_text(encoding="utf-8").splitlines()
        self.items: list[Item] = {
            line["session"]: line["items"] for line in map(json.loads, lines)
        }[session]
        self.turns: dict[str, list[Item]] = {}
        for item in self.items:
            if item.get("role") == "user":
                said = self.turns[item["content"]] = []
            else:
                said.append(item)
        # Whoever played the customer hung up with words that nobody answered.
        self.turns = {text: said for text, said in self.turns.items() if said}

    @property
    def questions(self) -> list[str]:
        """What the person said, in order."""
        return list(self.turns)

    def tool_output(self, name: str, arguments: str) -> str:
        """What the airline's tool answered to this very call (arguments as a model writes them)."""
        asked = (name, json.loads(arguments))
        outputs = {i["call_id"]: i["output"] for i in self.items if "output" in i}
        for item in self.items:
            if item.get("type") != "function_call":
                continue
            if (item["name"], json.loads(item["arguments"])) == asked:
                return str(outputs[item["call_id"]])
        return f"Error: nothing is on record for {name} with {arguments}"


class RecordedModel(Model):
    """Answers as the recorded model did, judging by nothing but the input it is given.

    So a history that the session lost or shuffled shows at once: the model does not know the way.
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
        """The recorded answer to the last thing a person said, one step further for each tool."""
        items: list[Any] = [{"role": "user", "content": input}] if isinstance(input, str) else input
        asked = max(n for n, item in enumerate(items) if item.get("role") == "user")
        answered = sum(item.get("type") == "function_call_output" for item in items[asked:])
        step: list[Any] = []
        for item in self.recording.turns[items[asked]["content"]]:
            if item["type"] == "function_call_output":
                answered -= 1
            elif answered == 0:
                step.append(
                    ResponseFunctionToolCall(**item)
                    if item["type"] == "function_call"
                    else ResponseOutputMessage(**item)
                )
        return ModelResponse(output=step, usage=Usage(requests=1), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Not recorded: the example runs whole turns."""
        raise RuntimeError("the recording has no stream; use Runner.run")


class Flight(TypedDict):
    """One leg."""

    flight_number: str
    date: str


class Passenger(TypedDict):
    """Who flies."""

    first_name: str
    last_name: str
    dob: str


class Payment(TypedDict):
    """Who pays how much."""

    payment_id: str
    amount: int


def airline_tools(recording: Recording) -> list[Tool]:
    """The airline's tools: the agent sees their signatures, the recording answers."""

    def recorded(call: ToolContext[None]) -> str:
        return recording.tool_output(call.tool_name, call.tool_arguments)

    @function_tool
    def get_user_details(call: ToolContext[None], user_id: str) -> str:
        """The customer's profile, with payment methods and reservations."""
        return recorded(call)

    @function_tool
    def get_reservation_details(call: ToolContext[None], reservation_id: str) -> str:
        """One reservation: flights, passengers, payments."""
        return recorded(call)

    @function_tool
    def search_direct_flight(
        call: ToolContext[None], origin: str, destination: str, date: str
    ) -> str:
        """Direct flights between two airports (three letters each) on a day (YYYY-MM-DD)."""
        return recorded(call)

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
        return recorded(call)

    return [get_user_details, get_reservation_details, search_direct_flight, book_reservation]


def airline_agent(recording: Recording, *, live: bool = False) -> Agent[None]:
    """A real agent with real function tools; its model is recorded unless `live`."""
    return Agent(
        name="Airline",
        instructions="You help customers of an airline. Look things up before you answer.",
        tools=airline_tools(recording),
        model=None if live else RecordedModel(recording),
    )
