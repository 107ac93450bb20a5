"""A storage's URL is refused with a reason where it cannot work, and its password is shown nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoft.config import load_study, study_from_data
from autoft.config.address import is_masked, masked, objection, scrubbed, without_password
from autoft.errors import ConfigError

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:s3cr3t@host:5432/db", "postgresql://ann:***@host:5432/db"),
        ("postgresql://ann@host/db", "postgresql://ann@host/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://:s3cr3t@host/db", "postgresql://:***@host/db"),
        ("postgresql+psycopg://ann:s3cr3t@/db?host=/run", "postgresql+psycopg://ann:***@/db?host=/run"),
        ("postgresql://ann@h/db?password=s3cr3t&x=1", "postgresql://ann@h/db?password=***&x=1"),
        ("postgresql://ann@h/db?x=1&sslpassword=s3cr3t", "postgresql://ann@h/db?x=1&sslpassword=***"),
        ("postgresql://ann:s3cr3t@x@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://ann:s3cr3t/x:y@host/db", "postgresql://ann:***@host/db"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_password_is_hidden_wherever_a_url_holds_it(url: str, shown: str) -> None:
    assert masked(url) == shown
    assert masked(shown) == shown
    assert is_masked(shown) == (url != shown)
    assert not is_masked(url) or url == shown


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("postgresql://ann:***@host:5432/db", "postgresql://ann@host:5432/db"),
        ("postgresql://ann@/db?host=/run/x&password=***", "postgresql://ann@/db?host=%2Frun%2Fx"),
        ("postgresql://ann@h/db?password=***", "postgresql://ann@h/db"),
    ],
)
def test_url_less_its_password_is_for_libpq_to_complete(url: str, bare: str) -> None:
    assert without_password(url) == bare


def test_words_of_a_library_are_scrubbed() -> None:
    url = "postgresql://ann:a%40b%2Fc@host/db"
    assert scrubbed(f"failed for {url}: a@b/c or a%40b%2Fc", url) == "failed for postgresql://ann:***@host/db: *** or ***"
    assert scrubbed("nothing", "postgresql://ann@host/db") == "nothing"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:x%40y@host:5432/db",
        "postgresql+psycopg://host/db?sslmode=require",
        "postgresql:///db",
        "postgresql://ann:***@/db?host=/run/postgresql",
        "sqlite:////data/all runs.db",
    ],
)
def test_url_that_can_work_is_accepted(url: str, tmp_path: Path) -> None:
    assert objection(url) is None
    assert study_from_data(tmp_path, [f"search.storage={json.dumps(url)}"]).search.storage == url


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        (f"mysql://ann:{SECRET}@host/db", "must begin with `postgresql://`"),
        (f"postgres://ann:{SECRET}@host/db", "must begin with `postgresql://`"),
        (f"postgresql+asyncpg://ann:{SECRET}@host/db", "must begin with `postgresql://`"),
        (f"postgresql://ann:{SECRET}@x@host/db", "must be postgresql://USER:PASSWORD@HOST"),
        (f"postgresql://ann:{SECRET}@host:port/db", "must be postgresql://USER:PASSWORD@HOST"),
        ("sqlite:///runs.db", "with an absolute path"),
        ("sqlite://", "with an absolute path"),
        ("sqlite:////data/x.db?mode=ro", "with an absolute path"),
        (f"ann:{SECRET}@host", "must begin with"),
        (3, "must be a URL such as"),
    ],
)
def test_url_that_cannot_work_is_refused_without_its_password(url: object, rule: str, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    (tmp_path / "photos").mkdir()
    study.write_text(f"data: photos\nsearch:\n  storage: {json.dumps(url)}\n")
    with pytest.raises(ConfigError) as caught:
        load_study(study)
    assert "line 3: search.storage: " in str(caught.value)
    assert rule in str(caught.value)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        study_from_data(tmp_path / "photos", [f"search.storage={json.dumps(url)}"])
    assert SECRET not in str(caught.value)


def test_resolved_study_has_no_password_and_the_identity_no_storage(tmp_path: Path) -> None:
    url = f"postgresql://ann:{SECRET}@host/db"
    config = study_from_data(tmp_path, [f"search.storage={url}"])
    assert "storage: postgresql://ann:***@host/db" in config.to_yaml()
    assert SECRET not in config.to_yaml() + repr(config) + json.dumps(config.identity())
    assert config.identity() == study_from_data(tmp_path).identity()
    assert config.with_storage(None) == study_from_data(tmp_path)
