"""Names of models in logs: aliases from catalog files, prices from a flag."""

from pathlib import Path

import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.data.catalogs import add_priced, load_catalog
from seqroute_ray.data.importer import import_logs
from tests.data.formats.support import CATALOG
from tests.data.test_importer import config_of, row, write_lines
from tests.support import make_catalog


def test_yaml_lists_of_aliases_come_back_from_json_as_they_went() -> None:
    catalog = load_catalog(CATALOG)
    assert catalog.models[0].aliases == ("openai/gpt-4o-mini", "gpt-4o-mini", "gpt-4o-mini-2024-07-18")
    assert type(catalog).from_json(catalog.to_json()) == catalog


def test_a_price_adds_a_model_behind_the_catalogs(tmp_path: Path) -> None:
    tokens = {"cost_usd": None, "prompt_tokens": 1000, "completion_tokens": 100}
    logs = write_lines(tmp_path / "logs.jsonl", [row("s", 0, model="org=my-llm", **tokens)])
    sessions = read_sessions(import_logs(config_of(logs, price=("free=0/0", "org=my-llm=0.15/0.6"))).out)
    assert sessions.catalog.names == ("org=my-llm",)
    assert sessions.cost_nusd.tolist() == [210_000]


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ("my-llm", "price must be MODEL=INPUT/OUTPUT in USD per million tokens, as in my-llm=0.15/0.6, got 'my-llm'"),
        ("m=1", "price must be MODEL=INPUT/OUTPUT in USD per million tokens, as in my-llm=0.15/0.6, got 'm=1'"),
        ("m=1/2/3", "price must be MODEL=INPUT/OUTPUT in USD per million tokens, as in my-llm=0.15/0.6, got 'm=1/2/3'"),
        ("m=a/b", "price must be MODEL=INPUT/OUTPUT in USD per million tokens, as in my-llm=0.15/0.6, got 'm=a/b'"),
        ("=1/2", "a model needs a name, a text that is not empty; got ''"),
        ("m=-1/2", "model 'm': usd_per_m_input must be a number >= 0 (USD per million tokens), got -1.0"),
        ("m=1/nan", "model 'm': usd_per_m_output must be a number >= 0 (USD per million tokens), got nan"),
        (
            "model-0=1/2",
            "model 'model-0' is in the catalog already; change its price there, not by price 'model-0=1/2'",
        ),
    ],
)
def test_a_price_that_cannot_be_meant_is_refused(price: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        add_priced(make_catalog(2), [price])
    assert str(caught.value) == message
