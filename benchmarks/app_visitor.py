"""A browser's side of the app's page without a browser: what Gradio's own page sends and reads.

One `Visitor` is one open page: it holds the heartbeat, joins the queue, reads the stream of its
session, applies the differences that are sent, cancels, uploads and fetches files. Everything that
the server ever answered goes through `seen`, where a caller may look for what must not be there.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

API = "/gradio_api"


def patched(value: Any, changes: list[list[Any]]) -> Any:
    """`value` after Gradio's list of changes [kind, path, new]."""
    for kind, path, new in changes:
        if not path:
            value = new
            continue
        place = value
        for step in path[:-1]:
            place = place[step]
        if kind == "replace":
            place[path[-1]] = new
        elif kind == "append":
            place[path[-1]] += new
        elif kind == "add" and isinstance(place, list):
            place.insert(int(path[-1]), new)
        elif kind == "add":
            place[path[-1]] = new
        elif kind == "delete":
            del place[path[-1]]
        else:
            raise ValueError(f"change {kind!r} is not known")
    return value


class Page:
    """What /config says of the page: its events by the widget that starts them."""

    def __init__(self, config: dict[str, Any]):
        self.widgets = {one["id"]: one for one in config["components"]}
        self.events = config["dependencies"]

    def name(self, target: list[Any]) -> str:
        props = self.widgets.get(target[0], {}).get("props", {})
        return f"{props.get('elem_id') or props.get('label') or target[0]}.{target[1]}"

    def event(self, name: str, which: int = 0) -> dict[str, Any]:
        """The `which`-th event of a trigger such as `generate.click`."""
        found = [e for e in self.events if name in map(self.name, e["targets"])]
        return found[which]

    def values(self, event: dict[str, Any]) -> list[Any]:
        """What the widgets of an event hold when the page is opened (a state: nothing)."""
        widgets = [self.widgets[number] for number in event["inputs"]]
        return [None if w["type"] == "state" else w["props"].get("value") for w in widgets]

    def labels(self, event: dict[str, Any]) -> list[str]:
        return [self.widgets[i]["props"].get("label") or "" for i in event["inputs"]]


class Refused(Exception):
    """The server answered, and not with 200."""


class Visitor:
    """One open page. `seen(address, status, headers, text)` is called for every answer."""

    def __init__(self, client: httpx.AsyncClient, page: Page, seen: Callable | None = None):
        self.client, self.page, self.seen = client, page, seen or (lambda *answer: None)
        self.session = "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=11))
        self.pulse: asyncio.Task | None = None

    async def open(self) -> None:
        """Load the page as a browser does, and keep its heartbeat from here on."""
        await self.get("/")
        await self.get("/config")
        self.pulse = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        with suppress(httpx.HTTPError):
            where = f"{API}/heartbeat/{self.session}"
            async with self.client.stream("GET", where, timeout=None) as answer:
                async for _ in answer.aiter_lines():
                    pass

    async def close(self) -> None:
        """The tab is closed: every connection of the session with it."""
        if self.pulse is not None:
            self.pulse.cancel()
            with suppress(asyncio.CancelledError):
                await self.pulse
            self.pulse = None

    async def get(self, path: str) -> httpx.Response:
        answer = await self.client.get(path)
        self.seen(path, answer.status_code, answer.headers, answer.text)
        return answer

    async def post(self, path: str, **what: Any) -> httpx.Response:
        answer = await self.client.post(f"{API}{path}", **what)
        self.seen(path, answer.status_code, answer.headers, answer.text)
        return answer

    def _body(self, event: dict[str, Any], values: list[Any], extra: Any = None) -> dict[str, Any]:
        return dict(
            data=values,
            event_data=extra,
            fn_index=event["id"],
            trigger_id=event["targets"][0][0] if event["targets"] else None,
            session_hash=self.session,
        )

    async def ask(self, event: dict[str, Any], values: list[Any], extra: Any = None) -> list[Any]:
        """An event that does not wait in the queue, as the page sends it."""
        body = self._body(event, values, extra)
        answer = await self.post(f"/run/{event['api_name']}", json=body)
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code}: {answer.text[:300]}")
        return answer.json()["data"]

    @asynccontextmanager
    async def asking(self, event: dict[str, Any], values: list[Any], extra: Any = None) -> Any:
        """Join the queue; (event's id, stream of outputs). The connection is cut at the end."""
        joined = await self.post("/queue/join", json=self._body(event, values, extra))
        if joined.status_code != 200:
            raise Refused(f"{joined.status_code}: {joined.text[:300]}")
        number = joined.json()["event_id"]
        stream = self._outputs(number)
        try:
            yield number, stream
        finally:
            await stream.aclose()

    async def _outputs(self, number: str) -> AsyncIterator[list[Any]]:
        where, query, now = f"{API}/queue/data", dict(session_hash=self.session), None
        async with self.client.stream("GET", where, params=query, timeout=90) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                self.seen(where, answer.status_code, answer.headers, line)
                said = json.loads(line[6:])
                if said.get("event_id") not in (number, None):
                    raise AssertionError(f"{self.session} was told of {said['event_id']}")
                output = said.get("output") or {}
                if output.get("error") is not None or said.get("success") is False:
                    raise Refused(str(output.get("error") or said.get("title") or "an error"))
                if said["msg"] == "process_generating":
                    data = output["data"]
                    now = data if now is None else [patched(o, d) for o, d in zip(now, data)]
                    yield now
                if said["msg"] == "process_completed":
                    if now is None and output.get("data") is not None:
                        yield output["data"]
                    return
                if said["msg"] in ("close_stream", "unexpected_error"):
                    raise Refused(str(said.get("message", said["msg"])))

    async def last(self, event: dict[str, Any], values: list[Any], extra: Any = None) -> list[Any]:
        """The last outputs of an event in the queue."""
        found: list[Any] | None = None
        async with self.asking(event, values, extra) as (_, stream):
            async for found in stream:
                pass
        if found is None:
            raise Refused("no answer")
        return found

    async def cancel(self, event: dict[str, Any], number: str) -> None:
        body = dict(session_hash=self.session, fn_index=event["id"], event_id=number)
        await self.post("/cancel", json=body)

    async def upload(self, name: str, content: bytes) -> httpx.Response:
        return await self.post("/upload", files={"files": (name, content, "application/json")})


def as_file(path: str, name: str) -> dict[str, Any]:
    """What the page sends of an uploaded file."""
    return dict(path=path, orig_name=name, meta={"_type": "gradio.FileData"})
