"""A storage's URL: which kinds there are, and how one is shown without its password; opens nothing."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode

HIDDEN = "***"
"""Stands for a password wherever a URL is written or shown."""
KINDS = ("postgresql://", "postgresql+psycopg://", "sqlite:///")
_PASSWORD = re.compile(r"(?<=://)([^:/@?]*):(.*)@", re.DOTALL)  # up to the last @: a password may hold one by mistake
_ASKED = re.compile(r"(?i)([?&](?:[^=&]*password|passfile)=)([^&]*)")  # libpq takes passwords there, too
_PORT = re.compile(r"[^/?]*://[^/?]*:(\d+)(?:[/?]|$)|[^/?]*://(?:[^/?:]*)(?:[/?]|$)")


def masked(url: str) -> str:
    """Return a URL with `***` in place of its password, if it has one."""
    return _ASKED.sub(rf"\g<1>{HIDDEN}", _PASSWORD.sub(rf"\g<1>:{HIDDEN}@", url))


def is_masked(url: str) -> bool:
    """Return whether a URL's password has been hidden, so that it must come from elsewhere."""
    return masked(url) == url and HIDDEN in url


def without_password(url: str) -> str:
    """Return a URL less its password: libpq then takes it from PGPASSWORD, or from the file that PGPASSFILE names."""
    base, mark, query = _PASSWORD.sub(r"\g<1>@", url).partition("?")
    kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if not name.endswith("password")]
    return base + (mark + urlencode(kept, quote_via=quote) if kept else "")


def scrubbed(text: str, url: str) -> str:
    """Return a text in which a URL and its password are hidden, however a library has written them."""
    found = [match[2] for match in (_PASSWORD.search(url), *_ASKED.finditer(url)) if match and match[2] != HIDDEN]
    text = text.replace(url, masked(url))
    forms = {form for secret in found for form in (secret, unquote(secret)) if form}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return text


def objection(url: str) -> tuple[str, str | None] | None:
    """Return what is wrong with a storage's URL, and what to do; None where nothing is. No password is in either."""
    shown = repr(masked(url)) if "://" in url else "another text"
    if url.startswith("sqlite"):
        if re.fullmatch(r"sqlite:////[^?]+", url):
            return None
        return (
            f"must be `sqlite:////FOLDER/FILE.db`, with an absolute path, but got {shown}",
            "four slashes: the path has one",
        )
    if not url.startswith(KINDS):
        return (
            f"must begin with `postgresql://` or `sqlite:////`, but got {shown}",
            "leave it out to keep the trials in the run folder; other servers are not tested",
        )
    address = url.partition("?")[0]
    if address.count("@") > 1 or not _PORT.match(_PASSWORD.sub("@", address)):
        return (
            f"must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE, but got {shown}",
            "in a password, write @ : / ? # and % in percent code: @ is %40",
        )
    return None
