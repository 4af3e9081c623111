"""What the serving tests share: a small random policy, its settings, a real HTTP server and a real HTTP client."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import uvicorn
import yaml
from threadpoolctl import threadpool_limits

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.embedding import DEFAULT_EMBEDDER, WordLlamaEmbedder, unit_rows
from seqroute_ray.core.fitting import EstimatorConfig, Observations, fit_estimator
from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK, StateLayout
from seqroute_ray.core.policy import Perceptron, PolicyArtefact, QNetwork, RiskPrices
from seqroute_ray.core.queries import Queries
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.data.sample import DEFAULT_POOL
from seqroute_ray.serving.api import make_api
from seqroute_ray.serving.config import ServingConfig, UpstreamConfig
from seqroute_ray.serving.pricing import Pricing

NUM_DIMS = 256  # of the wordllama embedder
NUM_ROWS = 60  # observations that a random estimator is fitted on
TYPES = ("prose", "sums")  # of task; see random_artefact
QUESTIONS = [
    "Natalia sold clips to 48 of her friends in April and half as many in May. How many in all?",
    "What is the remainder of 7^100 divided by 13?",
    "What does this return: [x * 2 for x in range(3)]?",
    "A train covers 60 km in 45 minutes. What is its speed in km/h?",
    "Find all real roots of x^3 - 6x^2 + 11x - 6.",
    "What is the output of 'abc'[::-1].upper()?",
]


@cache
def the_embedder() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def trio() -> Catalog:
    return load_outcomes().catalog.select(DEFAULT_POOL)


def spec(name: str, usd_per_m_input: float, usd_per_m_output: float, max_output_tokens: int | None = None) -> ModelSpec:
    return ModelSpec(
        name=name,
        usd_per_m_input=usd_per_m_input,
        usd_per_m_output=usd_per_m_output,
        max_output_tokens=max_output_tokens,
    )


def pricing_of(catalog: Catalog, usd_per_m_cached_input: Mapping[str, float] | None = None) -> list[Pricing]:
    """[K] the catalog's prices; those of cached tokens by name."""
    return [
        Pricing.of(
            UpstreamConfig(
                model=model.name,
                base_url="http://127.0.0.1:9/v1",
                usd_per_m_input=model.usd_per_m_input,
                usd_per_m_output=model.usd_per_m_output,
                usd_per_m_cached_input=(usd_per_m_cached_input or {}).get(model.name),
            )
        )
        for model in catalog.models
    ]


@cache
def random_artefact(
    catalog: Catalog, typical_cost_usd: float = 0.0005, seed: int = 0, types: tuple[str, ...] = TYPES
) -> PolicyArtefact:
    """A policy of random weights over the catalog.

    Predicted costs are around typical_cost_usd; answers to the last type of task are four times as long as to others.
    """
    rng, num_models = np.random.default_rng(seed), len(catalog)
    task_type = np.resize(types, NUM_ROWS)
    price = catalog.usd_per_token()[1]
    typical_tokens = typical_cost_usd / np.where(price > 0, price, 1.0)

    def weights(*shape: int) -> Any:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    longer = np.where(task_type == types[-1], np.log(4), 0.0)
    seen = Observations(
        queries=Queries(unit_rows(rng.normal(size=(NUM_ROWS, NUM_DIMS))), task_type, rng.integers(1, 200, NUM_ROWS)),
        quality=rng.integers(0, 2, (NUM_ROWS, num_models)).astype(np.float64),
        log_tokens=np.log(typical_tokens) + longer[:, None] + rng.normal(0, 0.3, (NUM_ROWS, num_models)),
        fold_key=np.arange(NUM_ROWS).astype(np.str_),
    )
    with threadpool_limits(1):  # on a busy machine, threads that share so little wait for each other
        estimator = fit_estimator(seen, EstimatorConfig(), catalog.names, np.array(types))
    layout = StateLayout(
        num_models=num_models,
        summary_width=estimator.features.summary_width,
        reference_cost_usd=0.05,
        expected_turns_left=(6.0, 5.0, 4.0),
    )

    def perceptron(num_own: int) -> Perceptron:
        return Perceptron([(weights(layout.num_context + num_own, 16), weights(16)), (weights(16, 1), weights(1))])

    return PolicyArtefact(
        catalog=catalog,
        embedder=DEFAULT_EMBEDDER,
        layout=layout,
        estimator=estimator,
        network=QNetwork(perceptron(NUM_AFTER - NUM_RISK), perceptron(NUM_AFTER), layout.num_context),
        risk=RiskPrices((0.1, 1.0), (10.0, 1.0)),
    )


def settings(folder: Path, artefact: PolicyArtefact, base_url: str) -> dict[str, Any]:
    """Saves the policy under `folder`; the mapping of a valid settings file for it."""
    artefact.save(folder / "policy")
    upstreams = [
        {
            "model": model.name,
            "base_url": base_url,
            "usd_per_m_input": model.usd_per_m_input,
            "usd_per_m_output": model.usd_per_m_output,
        }
        for model in artefact.catalog.models
    ]
    return {
        "policy": {"artefact": str(folder / "policy")},
        "ledger": str(folder / "ledger.sqlite"),
        "upstreams": upstreams,
    }


def write_settings(folder: Path, fields: Mapping[str, Any]) -> Path:
    path = folder / "serving.yaml"
    path.write_text(yaml.safe_dump(dict(fields)))
    return path


@contextmanager
def running_api(config: ServingConfig) -> Iterator[str]:
    """The API on a free loopback port; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(make_api(config), log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline_s:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Client:
    """Requests to one server as one session."""

    base_url: str
    headers: Mapping[str, str]

    def with_headers(self, **headers: str) -> "Client":
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={**self.headers, **named})

    def get(self, path: str) -> Reply:
        return asyncio.run(self._all("GET", path, [None]))[0]

    def put(self, path: str, body: Any) -> Reply:
        return asyncio.run(self._all("PUT", path, [body]))[0]

    def delete(self, path: str) -> Reply:
        return asyncio.run(self._all("DELETE", path, [None]))[0]

    def post(self, path: str, body: Any) -> Reply:
        return asyncio.run(self._all("POST", path, [body]))[0]

    def chat(self, text: str, **fields: Any) -> Reply:
        return self.chats([text], **fields)[0]

    def chats(self, texts: list[str], **fields: Any) -> list[Reply]:
        """All at once."""
        bodies = [{"messages": [{"role": "user", "content": text}], **fields} for text in texts]
        return asyncio.run(self._all("POST", "/v1/chat/completions", bodies))

    def hang_up(self, text: str, after_s: float) -> None:
        """Close the connection of a turn that takes longer than after_s. Raises TimeoutError."""
        body = {"messages": [{"role": "user", "content": text}]}
        asyncio.run(asyncio.wait_for(self._all("POST", "/v1/chat/completions", [body]), after_s))

    async def _all(self, method: str, path: str, bodies: list[Any]) -> list[Reply]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

            async def one(body: Any) -> Reply:
                url = self.base_url + path
                async with http.request(method, url, json=body, headers=self.headers) as response:
                    return Reply(response.status, await response.json(), response.headers)

            return await asyncio.gather(*map(one, bodies))
