"""Clients that spend sessions to their last cent, over HTTP; and what they were told, session by session."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import numpy as np

DONE = b"data: [DONE]\n\n"
QUESTIONS = (
    "Natalia sold clips to 48 of her friends in April and half as many in May. How many in all?",
    "What is the remainder of 7^100 divided by 13?",
    "What does this return: [x * 2 for x in range(3)]?",
    "A train covers 60 km in 45 minutes. What is its speed in km/h?",
    "What is the output of 'abc'[::-1].upper()?",
)
MAX_REFUSALS = 64  # of a session, while money of killed calls is held in it; then clients turn to another one
PAUSE_S = 0.05  # after a refusal or a failure
RETRIES = 3  # of a failed request that has an idempotency key


@dataclass
class Told:
    """What clients know of a session."""

    session_id: str
    budget_nusd: int
    cost_nusd: int = 0  # sum of the answers' own words
    decisions: list[str] = field(default_factory=list)  # of answers that came whole
    num_turns: int = 0  # asked for
    num_refused: int = 0


@dataclass(kw_only=True)
class Traffic:
    """One phase's clients; `run` once. All of them share `num_live` sessions, a spent one is replaced."""

    base_urls: list[str]
    rng: np.random.Generator
    name: str  # begins the sessions' names
    num_clients: int
    num_live: int
    budget_usd: tuple[float, float]
    stream_share: float
    max_tokens: int = 64
    hang_up_share: float = 0.0  # of requests without a key, ...
    hang_up_within_s: float = 1.0  # ... at any moment of this time
    key_share: float = 0.0  # of requests that have an idempotency key: these are repeated when they fail
    headers: dict[str, str] = field(default_factory=dict)
    max_sessions: int | None = None
    turns_per_session: int | None = None  # after which it is replaced, spent or not
    rate_per_s: float = 0.0  # of all turns together, evenly; 0: clients never pause
    no_answer_s: float = 30.0
    sessions: list[Told] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)  # statuses, and names of failures
    samples: dict[str, str] = field(default_factory=dict)  # by status, the first error's body
    num_requests: int = 0
    num_repeated_differently: int = 0  # a key whose second answer was of another decision
    latency_s: list[float] = field(default_factory=list)  # of answers

    async def run(self, seconds: float) -> None:
        self._live = [self._open() for _ in range(self.num_live)]
        self._until_s, self._num_moved = time.monotonic() + seconds, 0
        timeout = aiohttp.ClientTimeout(total=self.no_answer_s)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
            await asyncio.gather(*(self._client(http, number) for number in range(self.num_clients)))

    def stop(self) -> None:
        """No more turns; those that run end."""
        self._until_s = 0.0

    @property
    def errors(self) -> dict[str, int]:
        """By status or name: what is neither an answer nor a refusal, nor what a client did itself."""
        return {name: num for name, num in sorted(self.outcomes.items()) if name not in ("200", "402", "hung_up")}

    def _open(self) -> Told:
        low, high = np.log(self.budget_usd)
        budget_nusd = round(float(np.exp(self.rng.uniform(low, high))) * 1e9)
        told = Told(f"{self.name}-{len(self.sessions)}", budget_nusd)
        self.sessions.append(told)
        return told

    def _replace(self, told: Told) -> None:
        if told in self._live:
            self._live.remove(told)
            if self.max_sessions is None or len(self.sessions) < self.max_sessions:
                self._live.append(self._open())

    async def _client(self, http: aiohttp.ClientSession, number: int) -> None:
        turn, begun_s = 0, time.monotonic()
        while time.monotonic() < self._until_s and self._live:
            if self.rate_per_s:
                due_s = begun_s + (turn * self.num_clients + number) / self.rate_per_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            told = self._live[int(self.rng.integers(len(self._live)))]
            told.num_turns += 1
            if told.num_turns == self.turns_per_session:
                self._replace(told)
            await self._turn(http, self.base_urls[(number + self._num_moved) % len(self.base_urls)], told)
            turn += 1

    async def _turn(self, http: aiohttp.ClientSession, base_url: str, told: Told) -> None:
        """One turn; with a key, until it is answered, and then once more for the stored answer."""
        keyed = self.rng.random() < self.key_share
        headers = {"idempotency-key": f"{self.num_requests}"} if keyed else {}
        stream = bool(self.rng.random() < self.stream_share)
        question = QUESTIONS[int(self.rng.integers(len(QUESTIONS)))]
        first = None
        for _ in range(RETRIES if keyed else 1):
            first = await self._ask(http, base_url, told, question, stream, headers)
            if first is not None:
                break
        if keyed and first is not None:
            again = await self._ask(http, base_url, told, question, stream, headers, repeats=True)
            self.num_repeated_differently += again not in (None, first)

    async def _ask(
        self,
        http: aiohttp.ClientSession,
        base_url: str,
        told: Told,
        question: str,
        stream: bool,
        more_headers: dict[str, str],
        repeats: bool = False,
    ) -> str | None:
        """The decision's id when the answer came whole."""
        self.num_requests += 1
        begun_s = time.monotonic()
        headers = {
            "x-session-id": told.session_id,
            "x-session-budget-usd": f"{told.budget_nusd / 1e9:.9f}",
            **self.headers,
            **more_headers,
        }
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": self.max_tokens, "stream": stream}
        body |= {"stream_options": {"include_usage": True}} if stream else {}
        hangs_up = not more_headers and self.rng.random() < self.hang_up_share
        clock = asyncio.timeout(self.rng.uniform(0, self.hang_up_within_s) if hangs_up else None)
        try:
            url = f"{base_url}/v1/chat/completions"
            async with clock, http.post(url, json=body, headers=headers) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.outcomes["hung_up" if clock.expired() else type(error).__name__] += 1
            self._num_moved += isinstance(error, aiohttp.ClientConnectorError)  # to another replica, all of us
            await asyncio.sleep(PAUSE_S)
            return None
        if response.status != 200:
            await self._refused(told, response.status, raw)
            return None
        if stream and not raw.endswith(DONE):
            self.outcomes["broken_stream"] += 1
            return None
        self.outcomes["200"] += 1
        decision_id = response.headers["x-seqroute-decision"]
        if not repeats:
            self.latency_s.append(time.monotonic() - begun_s)
            told.cost_nusd += told_nusd(raw, stream)
            told.decisions.append(decision_id)
        return decision_id

    async def _refused(self, told: Told, status: int, raw: bytes) -> None:
        self.outcomes[str(status)] += 1
        if status != 402:
            self.samples.setdefault(str(status), raw[:300].decode(errors="replace"))
        else:
            told.num_refused += 1
            is_spent = json.loads(raw)["error"]["reserved_usd"] == 0
            if is_spent or told.num_refused >= MAX_REFUSALS:
                self._replace(told)
        await asyncio.sleep(PAUSE_S)


def told_nusd(raw: bytes, stream: bool) -> int:
    """The cost that an answer names; a stream without usage names none."""
    events = reversed(raw.split(b"\n\n")) if stream else [raw]
    event = next((each for each in events if b'"seqroute"' in each), None)
    if event is None:
        return 0
    cost_usd: float = json.loads(event.removeprefix(b"data: "))["seqroute"]["cost_usd"]
    return round(cost_usd * 1e9)
