"""docs/api.md names what callers can send and what they can get."""

import re
from pathlib import Path

import pytest

from seqroute_ray.serving import identity, knobs
from seqroute_ray.serving.chat_turn import STATE_FIELDS
from seqroute_ray.serving.keys import KeyConfig

FOLDER = Path(__file__).parent.parent.parent
PAGE = (FOLDER / "docs" / "api.md").read_text()
SERVING = FOLDER / "seqroute_ray" / "serving"
CODES = {code for path in SERVING.glob("*.py") for code in re.findall(r'code="([a-z_]+)"', path.read_text())}
HEADERS = {value for name, value in vars(knobs).items() if name.endswith("_HEADER")}
SOURCES = {identity.SESSION_HEADER, *identity.CLIENT_HEADERS, *identity.BODY_FIELDS, identity.CACHE_FIELD}
METADATA = {f"metadata.{name}" for name in identity.METADATA_FIELDS}


@pytest.mark.parametrize("name", sorted(CODES | HEADERS | SOURCES | METADATA | set(STATE_FIELDS)))
def test_the_page_names_every_code_header_and_field(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("setting", KeyConfig.model_fields)
def test_the_page_names_every_setting_of_a_key(setting: str) -> None:
    assert re.search(rf"^[- ] {setting}: ", PAGE, re.MULTILINE)
