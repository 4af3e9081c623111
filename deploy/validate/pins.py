"""What the repository pins: versions, extras, and the images that may be named."""

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy.validate.problems import read_text

PYTHON_TAG = re.compile(r"python:(\d+\.\d+\.\d+)-")


@dataclass(frozen=True)
class Pins:
    """Read from pyproject.toml, constraints.txt and the Dockerfile's stages."""

    root: Path
    stages: tuple[str, ...]

    @cached_property
    def _project(self) -> dict[str, Any]:
        project: dict[str, Any] = tomllib.loads(read_text(self.root, "pyproject.toml"))["project"]
        return project

    @property
    def version(self) -> str:
        return str(self._project["version"])

    @property
    def extras(self) -> set[str]:
        return set(self._project["optional-dependencies"])

    @cached_property
    def ray(self) -> str:
        """The pinned version of Ray."""
        found = re.search(r"^ray==(\S+)$", read_text(self.root, "constraints.txt"), re.MULTILINE)
        return found.group(1) if found else "?"

    def wrong_image(self, image: str, needs_gpu: bool = False) -> str | None:
        """Why an image may not be named; None when it may: Ray's of the pinned version, or one of the Dockerfile."""
        name, _, tag = image.partition(":")
        if not tag or tag.startswith("latest"):
            return f"{image}: an image must be pinned; name a version, such as :{self.ray}-py311"
        if name == "rayproject/ray":
            suffix = "-gpu" if needs_gpu else ""
            right = f"{self.ray}-py311{suffix}"
            return None if tag == right else f"{image}: must be Ray of constraints.txt; write rayproject/ray:{right}"
        stage = name.rsplit("/", 1)[-1].removeprefix("seqroute-")
        if stage not in self.stages or "/seqroute-" not in name:
            known = ", ".join(f"REGISTRY/seqroute-{stage}" for stage in self.stages)
            return f"{image}: no stage of deploy/Dockerfile builds it; name {known}"
        if tag != self.version:
            return f"{image}: must have the version of pyproject.toml; write {name}:{self.version}"
        return None

    def wrong_extras(self, requirement: str) -> str | None:
        """Why the extras of a requirement such as `.[train,serve]` are wrong, of this project only."""
        found = re.fullmatch(r"[./].*\[([^]]*)\]", requirement)
        unknown = sorted(set(found.group(1).split(",")) - self.extras) if found else []
        return (
            f"{', '.join(unknown)}: no extra of pyproject.toml; known: {', '.join(sorted(self.extras))}"
            if unknown
            else None
        )
