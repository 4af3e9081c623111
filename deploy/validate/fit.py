"""Whether nodes can hold what is asked of them: Ray waits for a resource that no node offers, without an error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.validate.problems import Problem, Problems


@dataclass(frozen=True)
class Ask:
    """One actor or job, at most so many times."""

    resources: Mapping[str, float]
    most: int


@dataclass(frozen=True)
class Node:
    """A kind of node, at most so many of them."""

    name: str
    offers: Mapping[str, float]
    most: int

    def holds(self, ask: Ask) -> int:
        """How many, all nodes of the kind together."""
        asked = [(name, amount) for name, amount in ask.resources.items() if amount]
        return int(min(self.offers.get(name, 0) // amount for name, amount in asked)) * self.most if asked else ask.most


def check_fit(file: str, where: str, ask: Ask, nodes: Sequence[Node], limit: str) -> Problems:
    """limit: the field that says how many nodes of a kind there may be."""
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in ask.resources.items() if amount)
    room = sum(node.holds(ask) for node in nodes)
    if not room:
        yield Problem(file, where, f"{wanted}: no node offers that, and Ray would wait for ever; lower it or add nodes")
    elif room < ask.most:
        yield Problem(
            file, where, f"{ask.most} replicas of {wanted}: the nodes hold {room}; raise {limit} or lower max_replicas"
        )


def check_replicas(file: str, where: str, asks: Sequence[Ask], nodes: Sequence[Node], limit: str) -> Problems:
    for ask in asks:
        yield from check_fit(file, where, ask, nodes, limit)
