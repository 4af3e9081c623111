"""Which policy decides for a session: the current one, a canary for a share of the sessions, a shadow that only looks.

A session stays with its side: the share is of a hash of its id, so every replica says the same.
"""

import hashlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

from seqroute_ray.core.embedding import Embedder, load_embedder
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.serving.config import PolicySettings
from seqroute_ray.serving.pricing import Pricing
from seqroute_ray.serving.router import Router


class Chosen(NamedTuple):
    """The routers of one session."""

    router: Router
    side: Literal["current", "canary"]
    shadow: Router | None


class Policies:
    """Loaded routers; replaced as a whole by a swap. artefacts: by location; pricing: by model."""

    def __init__(
        self,
        settings: PolicySettings,
        artefacts: Mapping[str, PolicyArtefact],
        pricing: Mapping[str, Pricing],
        default_max_tokens: int,
    ) -> None:
        self.settings = settings
        embedders: dict[str, Embedder] = {}

        def router(location: str) -> Router:
            artefact = artefacts[location]
            if artefact.embedder not in embedders:
                embedders[artefact.embedder] = load_embedder(artefact.embedder)
            prices = [pricing[name] for name in artefact.catalog.names]
            return Router(artefact, embedders[artefact.embedder], prices, default_max_tokens, settings.epsilon)

        self.current = router(settings.locations()[0])
        self._canary = router(settings.canary.artefact) if settings.canary else None
        self._shadow = router(settings.shadow.artefact) if settings.shadow else None
        self._alone = Chosen(router=self.current, side="current", shadow=None)
        if len(embedders) > 1:
            raise ConfigError(
                f"current, canary and shadow policy must share one embedder, got {', '.join(sorted(embedders))}"
            )

    def of(self, session_id: str) -> Chosen:
        """The routers that are responsible for a session."""
        canary, shadow = self.settings.canary, self.settings.shadow
        if canary is None and shadow is None:
            return self._alone
        share = share_of(session_id)
        is_canary = canary is not None and share < canary.share
        # The shadow's share is counted from the other end: a small shadow and a small canary see different sessions.
        is_shadowed = shadow is not None and 1 - share <= shadow.share
        return Chosen(
            router=self._canary if is_canary and self._canary else self.current,
            side="canary" if is_canary else "current",
            shadow=self._shadow if is_shadowed else None,
        )

    @property
    def routers(self) -> list[Router]:
        return [router for router in (self.current, self._canary, self._shadow) if router]


def share_of(session_id: str) -> float:
    """In [0, 1), uniform over sessions, the same everywhere."""
    return int.from_bytes(hashlib.sha256(session_id.encode()).digest()[:7]) / 2**56
