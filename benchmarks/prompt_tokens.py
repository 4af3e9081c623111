"""Does the bound of a prompt's tokens hold, how loose is it, and what does it cost?

    pip install "seqroute-ray[bench]"
    python benchmarks/prompt_tokens.py [--data outcomes.parquet] [--seed 0]

`--data`: real questions, Parquet with query_id, text, model and the recorded prompt_tokens. What they count beside the
text (template and instructions, which the file does not hold) is taken off as one constant: the median of recorded
tokens less o200k's of the text. Other text is made here or comes with Python: its help and library, random JSON,
base64, hex, digits, symbols, letters and Han of several scripts, emoji. Every text is counted with three byte-level
tokenizers of other vendors and compared with MARGIN x Llama 2's tokens, at most the bytes. Times are of CPU. Ends with
one JSON line; no text is printed.
"""

import base64
import functools
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics  # Python's own help: English about code, on every machine
from typing import Any

import bpe_openai
import pyarrow.parquet as pq
import tyro
from _processes import machine

from seqroute_ray.serving import prompt_tokens
from seqroute_ray.serving.openai_schema import parse_chat

MARGINS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
TOKENIZERS = ("cl100k_base", "o200k_base", "voyage3_base")
NUM_TEXTS, NUM_ROUNDS = 100, 15
LIBRARY = Path(json.__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Settings:
    data: Path | None = None  # none: hard texts alone
    seed: int = 0


def hard_texts(rng: random.Random) -> dict[str, list[str]]:
    """100 texts of each kind; letters of a script are drawn evenly, which is harder than its words."""
    han = [bytes([row, cell]).decode("gb2312") for row in range(0xB0, 0xD7) for cell in range(0xA1, 0xFF)]

    def words(letters: list[str], longest: int = 10) -> str:
        return " ".join("".join(rng.choices(letters, k=rng.randint(2, longest))) for _ in range(80))

    def script(first: int, last: int) -> list[str]:
        return [chr(code) for code in range(first, last)]

    def rows() -> list[dict[str, Any]]:
        return [{"id": rng.randrange(10**9), "x": rng.random(), "tags": rng.choices("xyz", k=3)} for _ in range(20)]

    code = [path.read_text()[:4000] for path in sorted(LIBRARY.glob("*.py")) if path.stat().st_size > 2000]
    makers: dict[str, Callable[[], str]] = {
        "JSON": lambda: json.dumps(rows(), indent=rng.choice([None, 2])),
        "base64": lambda: base64.b64encode(rng.randbytes(600)).decode(),
        "hex, lines of 32": lambda: "\n".join(rng.randbytes(16).hex() for _ in range(20)),
        "digits": lambda: words(list("0123456789"), 11),
        "symbols": lambda: words(list("{}[]()<>;:,.!?@#$%^&*-_=+|\\/~`'\""), 8),
        "Latin letters": lambda: words(script(97, 123)),
        "Cyrillic letters": lambda: words(script(0x430, 0x450)),
        "Arabic letters": lambda: words(script(0x627, 0x64B)),
        "Devanagari letters": lambda: words(script(0x905, 0x939)),
        "Hangul": lambda: words(script(0xAC00, 0xD7A3)),
        "Han": lambda: "".join(rng.choices(han, k=300)),
        "emoji": lambda: "".join(rng.choices(script(0x1F300, 0x1F650), k=200)),
        "blanks": lambda: " " * rng.randint(1, 500) + "\n\t" * rng.randint(0, 50) + "x",
    }
    return {"Python": code[:NUM_TEXTS]} | {name: [make() for _ in range(NUM_TEXTS)] for name, make in makers.items()}


encoding = functools.cache(bpe_openai.get_encoding)  # reading one takes 0.1 s and more


def bound(text: str, margin: float) -> int:
    """As prompt_tokens.estimate, without what it adds per message and prompt."""
    return min(len(text.encode()), math.ceil(margin * prompt_tokens.count(text)))


def compare(texts: list[str]) -> dict[str, Any]:
    """Ratios to Llama 2's tokens by tokenizer, and the share of texts above the bound at the worst of the three."""
    counts = {name: [len(encoding(name).encode_ordinary(text)) for text in texts] for name in TOKENIZERS}
    most = [max(tokens) for tokens in zip(*counts.values(), strict=True)]
    llama = [prompt_tokens.count(text) for text in texts]
    return {
        "num_texts": len(texts),
        "bytes_per_token": round(sum(len(text.encode()) for text in texts) / sum(most), 2),
        "median": {n: round(statistics.median(map(ratio, c, llama)), 3) for n, c in counts.items()},
        "highest": {n: round(max(map(ratio, c, llama)), 3) for n, c in counts.items()},
        "share_above_bound": {m: share_above(most, [bound(text, m) for text in texts]) for m in MARGINS},
        "bound_over_highest_count": round(sum(bound(t, prompt_tokens.MARGIN) for t in texts) / sum(most), 2),
        "share_above_bytes_over_3": share_above(most, [math.ceil(len(text.encode()) / 3) for text in texts]),
    }


def ratio(count: int, llama: int) -> float:
    return count / llama


def share_above(counts: list[int], bounds: list[int]) -> float:
    return round(sum(count > most for count, most in zip(counts, bounds, strict=True)) / len(counts), 4)


def recorded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By model: the share of recorded prompts above the bound of their text, by margin."""
    o200k = encoding("o200k_base")
    texts = {row["query_id"]: row["text"] for row in rows}
    own = {query: len(o200k.encode_ordinary(text)) for query, text in texts.items()}
    pairs = [(row["query_id"], row["model"], row["prompt_tokens"]) for row in rows]
    template = round(statistics.median(tokens - own[query] for query, _, tokens in pairs))
    models = sorted({model for _, model, _ in pairs})
    shares = {}
    for model in models:
        of_text = [(query, tokens - template) for query, named, tokens in pairs if named == model]
        counts = [tokens for _, tokens in of_text]
        shares[model] = {m: share_above(counts, [bound(texts[query], m) for query, _ in of_text]) for m in MARGINS}
    residuals = [abs(tokens - own[query] - template) for query, _, tokens in pairs]
    ratios = [(tokens - template) / prompt_tokens.count(texts[query]) for query, _, tokens in pairs]
    return {
        "template_tokens": template,
        "largest_distance_from_o200k": max(residuals),
        "typical_ratio": round(statistics.median(ratios), 3),
        "highest_ratio": round(max(ratios), 3),
        "share_above_bound_by_model": shares,
    }


def timings(texts: list[str]) -> dict[str, float]:
    """Median CPU microseconds: parsing a request of two messages whose words are known, and whose text is new."""
    bodies = [
        json.dumps(
            {
                "model": "seqroute",
                "messages": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": text},
                ],
                "temperature": 0.2,
            }
        ).encode()
        for text in texts
    ]

    def parse_all() -> float:
        times_us = []
        for body in bodies:
            started = time.process_time_ns()
            parse_chat(body)
            times_us.append((time.process_time_ns() - started) / 1e3)
        return statistics.median(times_us)

    def forget_texts() -> float:
        prompt_tokens._texts.clear()
        return parse_all()

    prompt_tokens._texts.clear()
    prompt_tokens._pieces.clear()
    prompt_tokens.load_tokenizer()
    first_us = parse_all()
    long = "\n".join(topics.values())[: prompt_tokens.MAX_COUNTED_CHARACTERS]
    prompt_tokens._texts.clear()
    started = time.process_time_ns()
    prompt_tokens.count(long)
    long_ms = (time.process_time_ns() - started) / 1e6
    return {
        "parse_us_first_words": round(first_us, 1),
        "parse_us_new_text": round(min(forget_texts() for _ in range(NUM_ROUNDS)), 1),
        "parse_us_known_text": round(min(parse_all() for _ in range(NUM_ROUNDS)), 1),
        "count_longest_text_ms": round(long_ms, 1),
    }


def main(settings: Settings) -> None:
    rows = pq.read_table(settings.data).to_pylist() if settings.data else []
    prose = [text for topic in topics.values() for text in topic.split("\n\n") if 150 < len(text) < 350]
    kinds = {
        "questions": sorted({row["text"] for row in rows}),
        "help": prose,
        **hard_texts(random.Random(settings.seed)),
    }
    result = {
        "margin": prompt_tokens.MARGIN,
        "recorded": recorded(rows) if rows else None,
        "kinds": {kind: compare(texts) for kind, texts in kinds.items() if texts},
        **timings(prose[:500]),
        "seed": settings.seed,
        "machine": machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
