"""Write dates in the formats of some hundred languages, each word tagged day, month, year, weekday or era; trains nothing.

Formats and names are those of Unicode's CLDR, which the package babel ships. Each text is a date or a span of dates, alone
or with a time of day, an amount, a country or a language beside it, joined as the language joins lists. The splits share no
language.

    python make_data.py                        # data/dates.jsonl: tokens, tags, language, split
    python make_data.py /tmp/more.jsonl --per-language 50
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import babel
from babel import localedata
from babel.core import get_cldr_version
from babel.dates import DateTimeFormat, get_day_names, get_month_names, tokenize_pattern
from babel.numbers import format_currency, format_decimal, format_percent
from babel.units import format_unit

from autoft.runtime.text import split_words

TAG_OF_FIELD = {"d": "DAY", "M": "MONTH", "L": "MONTH", "y": "YEAR", "Y": "YEAR", "E": "WEEKDAY", "c": "WEEKDAY", "G": "ERA"}
OUTSIDE = "O"
SPLITS = ("train", "validation", "test")
SHARES = {"validation": 0.15, "test": 0.25}  # of the languages
PER_LANGUAGE = 12
SEED = 0
FIRST_YEAR, LAST_YEAR = 1900, 2099
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "INR", "CHF", "BRL", "NGN")
UNITS = ("length-kilometer", "mass-kilogram", "duration-hour", "duration-minute", "temperature-celsius", "volume-liter")

Piece = tuple[str, str | None]
"""A part of a text, and the tag of its words, or None."""


@dataclass(frozen=True)
class Sample:
    """One row of the data."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    language: str
    split: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path(__file__).parent / "data" / "dates.jsonl", help="file to write"
    )
    parser.add_argument("--per-language", type=int, default=PER_LANGUAGE, help="texts of each language")
    arguments = parser.parse_args()
    if arguments.per_language < 1:
        parser.error(f"--per-language must be at least 1, but got {arguments.per_language}")

    split_of = divide(month_names())
    samples = make(split_of, arguments.per_language)
    lines = "".join(
        json.dumps(
            {"tokens": each.tokens, "tags": each.tags, "language": each.language, "split": each.split}, ensure_ascii=False
        )
        + "\n"
        for each in samples
    )
    content = lines.encode()
    same = arguments.out.is_file() and arguments.out.read_bytes() == content
    if not same:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_bytes(content)
    print(f"from babel {babel.__version__}, CLDR {get_cldr_version()}; languages with names of their own: {len(split_of)}")
    for split in SPLITS:
        chosen = [each for each in samples if each.split == split]
        counts = Counter(tag[2:] for each in chosen for tag in each.tags if tag.startswith("B-"))
        listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        print(f"{split:10} {len({each.language for each in chosen}):3} languages, {len(chosen):4} texts: {listed}")
    digest = hashlib.sha256(content).hexdigest()[:12]
    print(f"{arguments.out}: {len(samples)} texts{'; was there already' if same else ''} (sha256 {digest})")
    return 0


# --- languages --------------------------------------------------------------------------------------


def month_names() -> dict[str, frozenset[str]]:
    """Return the names of the months, in lower case, of every language that has its own for months and for weekdays."""
    found = {}
    for code in sorted(localedata.locale_identifiers()):
        if "_" in code:
            continue  # a language in one country or script: too much like the language itself
        locale = open_locale(code)
        months = [get_month_names("wide", "format", locale)[month] for month in range(1, 13)]
        days = [get_day_names("wide", "format", locale)[day] for day in range(7)]
        # what has no names of its own gets CLDR's stand-ins: M01 to M12, and short English weekdays
        if months[0] != "M01" and days[0] != "Mon":
            found[code] = frozenset(name.lower() for name in months)
    return found


def open_locale(code: str) -> babel.Locale:
    """Return a locale on data of its own.

    babel 2.18 writes a name that one locale takes from another place into what all locales share: Russian Tuesdays were
    called `Tue` after Blin had been asked. Nothing is shared once the cache is empty.
    """
    localedata._cache.clear()
    return babel.Locale.parse(code)


def divide(names: dict[str, frozenset[str]]) -> dict[str, str]:
    """Return the split of each language; languages that share more than half of the months' names share the split, too.

    Otherwise Bokmål would be in train and Nynorsk in test, and names that were learned by heart would do.
    """
    family = {code: code for code in names}
    for one, other in combinations(sorted(names), 2):
        if len(names[one] & names[other]) > 6 and family[one] != family[other]:
            kept, gone = sorted((family[one], family[other]))
            family = {code: kept if name == gone else name for code, name in family.items()}
    members: dict[str, list[str]] = defaultdict(list)
    for code, name in family.items():
        members[name].append(code)
    wanted = {split: round(share * len(names)) for split, share in SHARES.items()}
    split_of = {}
    # by hash: a random order that a language more or less changes little
    for name in sorted(members, key=lambda each: hashlib.sha256(each.encode()).digest()):
        # English is what the backbone knows: it belongs to train
        open_splits = [] if "en" in members[name] else [s for s, left in wanted.items() if left >= len(members[name])]
        split = open_splits[0] if open_splits else "train"
        if split in wanted:
            wanted[split] -= len(members[name])
        split_of |= dict.fromkeys(members[name], split)
    return split_of


# --- texts ------------------------------------------------------------------------------------------


def make(split_of: dict[str, str], per_language: int) -> list[Sample]:
    """Return the samples of all languages; no text twice, so that none is in two splits."""
    seen: set[tuple[str, ...]] = set()
    samples = []
    for code in sorted(split_of):
        rng = random.Random(f"{SEED} {code}")
        locale = open_locale(code)
        count = 0
        for _ in range(per_language * 10):  # some languages have few formats, and numbers alone repeat
            if count == per_language:
                break
            tagged = tag(compose(locale, rng))
            if tagged is None or tagged[0] in seen:
                continue
            seen.add(tagged[0])
            samples.append(Sample(*tagged, code, split_of[code]))
            count += 1
    return samples


def compose(locale: babel.Locale, rng: random.Random) -> list[Piece]:
    """Return a random text of a locale in pieces."""
    kind = rng.random()
    if kind < 0.25:
        pieces = interval(locale, rng)
    elif kind < 0.45:
        pieces = with_time(locale, rng)
    else:
        pieces = fields(rng.choice(date_patterns(locale)), random_day(rng), locale)
    others = rng.choices((0, 1, 2), weights=(5, 3, 2))[0]
    if others:
        items = [pieces, *([companion(locale, rng)] for _ in range(others))]
        rng.shuffle(items)
        pieces = join(items, locale)
    return pieces


def date_patterns(locale: babel.Locale) -> list[str]:
    """Return a locale's patterns for dates: the four usual ones, several times, and those of more than one field."""
    usual = [str(locale.date_formats[width]) for width in ("full", "long", "medium", "short")]
    rarer = [
        str(pattern)
        for skeleton, pattern in sorted(locale.datetime_skeletons.items())
        if len(set(skeleton)) > 1 and set(skeleton) <= set(TAG_OF_FIELD)
    ]
    return [*usual * 4, *rarer]


def random_day(rng: random.Random) -> datetime.datetime:
    """Return a random minute of the years from `FIRST_YEAR` to `LAST_YEAR`."""
    first = datetime.datetime(FIRST_YEAR, 1, 1, tzinfo=datetime.UTC)
    days = (datetime.date(LAST_YEAR, 12, 31) - first.date()).days
    return first + datetime.timedelta(days=rng.randint(0, days), minutes=rng.randrange(24 * 60))


def fields(pattern: str, moment: datetime.datetime, locale: babel.Locale) -> list[Piece]:
    """Return a moment in a pattern of CLDR, such as `EEEE, d MMMM y`, a piece a field."""
    formatted = DateTimeFormat(moment, locale)
    pieces: list[Piece] = []
    for kind, value in tokenize_pattern(pattern):
        if kind == "chars":
            pieces.append((str(value), None))
        else:
            letter, length = value
            pieces.append((formatted[str(letter) * int(length)], TAG_OF_FIELD.get(str(letter))))
    return pieces


def with_time(locale: babel.Locale, rng: random.Random) -> list[Piece]:
    """Return a date and a time of day, joined by the locale's pattern, which may hold a word such as `at`."""
    moment, width = random_day(rng), rng.choice(("full", "long", "medium", "short"))
    date = fields(str(locale.date_formats[width]), moment, locale)
    time = fields(str(locale.time_formats[rng.choice(("medium", "short"))]), moment, locale)
    return fill(str(locale.datetime_formats[width]).replace("'", ""), {"0": time, "1": date})


def interval(locale: babel.Locale, rng: random.Random) -> list[Piece]:
    """Return a span of dates in one of the locale's patterns, as `babel.dates.format_interval` chooses it."""
    start = random_day(rng)
    end = start + datetime.timedelta(days=rng.choice((rng.randint(1, 14), rng.randint(15, 90), rng.randint(91, 900))))
    # the largest part in which they differ decides what is said once and what twice
    differing = next(part for part in ("year", "month", "day") if getattr(start, part) != getattr(end, part))
    letter = {"year": "y", "month": "M", "day": "d"}[differing]
    patterns = [
        formats[letter]
        for skeleton, formats in sorted(locale.interval_formats.items(), key=lambda item: item[0] or "")
        if skeleton and len(set(skeleton)) > 1 and set(skeleton) <= set(TAG_OF_FIELD) and len(formats.get(letter, ())) == 2
    ]
    if patterns:
        first, second = rng.choice(patterns)
        return [*fields(first, start, locale), *fields(second, end, locale)]
    pattern = str(locale.date_formats[rng.choice(("long", "medium", "short"))])
    glue = locale.interval_formats.get(None, "{0} – {1}")
    return fill(str(glue), {"0": fields(pattern, start, locale), "1": fields(pattern, end, locale)})


def companion(locale: babel.Locale, rng: random.Random) -> Piece:
    """Return something else with a number or a name: an amount, a measure, a share, a country, a language."""
    number = round(rng.lognormvariate(3, 2), rng.choice((0, 0, 2)))
    makers: list[Callable[[], str]] = [
        lambda: format_currency(number, rng.choice(CURRENCIES), locale=locale),
        lambda: measure(number, rng, locale),
        lambda: format_percent(rng.randint(1, 100) / 100, locale=locale),
        lambda: format_decimal(number, locale=locale),
        lambda: rng.choice([name for code, name in sorted(locale.territories.items()) if code.isalpha()] or ["EU"]),
        lambda: rng.choice([name for _, name in sorted(locale.languages.items())] or ["ISO"]),
    ]
    return rng.choice(makers)(), None


def measure(number: float, rng: random.Random, locale: babel.Locale) -> str:
    """Return a number with a unit; the number alone where the language has no name for the unit."""
    unit = rng.choice(UNITS)
    text = format_unit(number, unit, length=rng.choice(("long", "short")), locale=locale)
    return format_decimal(number, locale=locale) if unit in text else text


def join(items: Sequence[Sequence[Piece]], locale: babel.Locale) -> list[Piece]:
    """Return items joined as the locale joins a list."""
    patterns = locale.list_patterns["standard"]
    if len(items) == 2:
        return fill(patterns["2"], {"0": items[0], "1": items[1]})
    joined = fill(patterns["end"], {"0": items[-2], "1": items[-1]})
    for item in reversed(items[1:-2]):
        joined = fill(patterns["middle"], {"0": item, "1": joined})
    return fill(patterns["start"], {"0": items[0], "1": joined})


def fill(pattern: str, values: dict[str, Sequence[Piece]]) -> list[Piece]:
    """Return a pattern such as `{1}, {0}` with pieces in its places."""
    pieces: list[Piece] = []
    for number, part in enumerate(re.split(r"\{(\d)\}", pattern)):
        pieces.extend(values[part] if number % 2 else [(part, None)])
    return pieces


# --- tags -------------------------------------------------------------------------------------------


def tag(pieces: Iterable[Piece]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the words of a text and their tags; None where a word belongs to two fields, as in Chinese: 2024年1月5日.

    Words are what a bundle makes of a raw text.

    Example:
        >>> tag([("5", "DAY"), (" de ", None), ("maio", "MONTH")])
        (('5', 'de', 'maio'), ('B-DAY', 'O', 'B-MONTH'))
    """
    text, spans = "", []
    for content, name in pieces:
        if name is not None:
            spans.append((len(text), len(text) + len(content), name))
        text += content
    tokens, tags = [], []
    before: int | None = None
    for start, end in split_words(text):
        inside = [number for number, (first, last, _) in enumerate(spans) if first < end and start < last]
        if len(inside) > 1:
            return None
        number = inside[0] if inside else None
        tokens.append(text[start:end])
        tags.append(OUTSIDE if number is None else f"{'I' if number == before else 'B'}-{spans[number][2]}")
        before = number
    return tuple(tokens), tuple(tags)


if __name__ == "__main__":
    sys.exit(main())
