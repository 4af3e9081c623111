"""Which policy decides for a session: the current one, a canary for a share of the sessions, a shadow that only looks.

A session stays with its side: the share is of a hash of its id, so every replica says the same.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from seqroute_ray.core.embedding import Embedder, load_embedder
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.storage import absolute
from seqroute_ray.serving.router import Router

_Share = Field(gt=0, le=1)


class ShareSettings(BaseModel):
    """A second policy, and the share of sessions that it sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artefact: str  # folder or URI
    share: float = _Share


class PolicySettings(BaseModel):
    """What decides. Also Serve's `user_config`: a change of it swaps policies without dropping a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artefact: str  # folder or URI with manifest.json and weights.npz
    canary: ShareSettings | None = None  # decides for its share of the sessions
    shadow: ShareSettings | None = None  # decides beside; its choice stands in the decision record only
    epsilon: float = Field(default=0.0, ge=0, le=1)  # chance of a uniform choice: logs to learn from need some

    def absolute(self) -> "PolicySettings":
        """With paths that hold in any folder."""

        def share(settings: ShareSettings | None) -> ShareSettings | None:
            return settings and settings.model_copy(update={"artefact": absolute(settings.artefact)})

        changes = {"artefact": absolute(self.artefact), "canary": share(self.canary), "shadow": share(self.shadow)}
        return self.model_copy(update=changes)

    def locations(self) -> list[str]:
        return [self.artefact, *(share.artefact for share in (self.canary, self.shadow) if share)]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The routers of one session."""

    router: Router
    side: Literal["current", "canary"]
    shadow: Router | None


class Policies:
    """Loaded routers; replaced as a whole by a swap."""

    def __init__(self, settings: PolicySettings, artefacts: dict[str, PolicyArtefact], default_max_tokens: int) -> None:
        self.settings = settings
        embedders: dict[str, Embedder] = {}

        def router(location: str) -> Router:
            artefact = artefacts[location]
            if artefact.embedder not in embedders:
                embedders[artefact.embedder] = load_embedder(artefact.embedder)
            return Router(artefact, embedders[artefact.embedder], default_max_tokens, settings.epsilon)

        self.current = router(settings.artefact)
        self._canary = settings.canary and router(settings.canary.artefact)
        self._shadow = settings.shadow and router(settings.shadow.artefact)
        if len(embedders) > 1:
            raise ConfigError(
                f"current, canary and shadow policy must share one embedder, got {', '.join(sorted(embedders))}"
            )

    def of(self, session_id: str) -> Chosen:
        """The routers that are responsible for a session."""
        share = share_of(session_id)
        canary, shadow = self.settings.canary, self.settings.shadow
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
