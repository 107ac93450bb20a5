from __future__ import annotations

import copy
import json
import math
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autoft.config import (
    BackboneConfig,
    DataConfig,
    ExportConfig,
    Known,
    Objection,
    PluginsConfig,
    SearchConfig,
    SpaceEntry,
    StudyConfig,
    TrainerConfig,
    load_study,
    study_from_data,
)
from autoft.errors import ConfigError, Problem
from autoft.specs import Choice, Range


def check_backbone(name: str, weights: str) -> Objection | None:
    if name in ("toy/small", "toy/large"):
        return None
    return Objection(f"must be a known model, but got {name!r}", "did you mean `toy/small`?")


KNOWN = Known(
    data_plugins=frozenset({"image-folder"}),
    heads={
        "image-classification": frozenset({"accuracy", "f1_macro"}),
        "image-regression": frozenset({"mean_error"}),
    },
    space=frozenset({"learning_rate", "freeze_depth", "dropout", "weight_decay"}),
    check_backbone=check_backbone,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "local").mkdir()
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(folder: Path, text: str, overrides: tuple[str, ...] = (), known: Known | None = None) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load_study(write(folder, text), overrides, known)
    return caught.value.problems


def problem_of(folder: Path, text: str, overrides: tuple[str, ...] = (), known: Known | None = None) -> Problem:
    problems = problems_of(folder, text, overrides, known)
    assert len(problems) == 1, "\n".join(map(str, problems))
    return problems[0]


# --- reading a right study ------------------------------------------------------------------------


def test_smallest_study_has_a_default_for_everything_but_data(folder: Path) -> None:
    config = load_study(write(folder, "data: photos\n"), known=KNOWN)
    assert config.name == "photos"
    assert config.data == DataConfig(path=folder / "photos")
    assert config.backbones == ()
    assert config.task is None
    assert config.space == {}
    assert (config.plugins, config.search, config.trainer, config.export) == (
        PluginsConfig(),
        SearchConfig(),
        TrainerConfig(),
        ExportConfig(),
    )
    assert config.source == str(folder / "study.yaml")


def test_full_study_is_read(folder: Path) -> None:
    text = """
name: digits-2
data: {path: photos, plugin: image-folder, validation_share: 0.2, test_share: 0.1, max_rejected: 0, split_seed: 7}
task: image-classification
backbones:
  - toy/small
  - {name: toy/large, weights: none, image_size: 64}
plugins: {allow: [heads, image-folder], strict: true}
space:
  learning_rate: {low: 1e-5, high: 1e-2, log: true}
  freeze_depth: {low: 0, high: all}
  dropout: {choices: [0.0, 0.1]}
  weight_decay: 1e-2
search: {trials: 40, time_limit: 1h30m, metric: f1_macro, seed: 3, prune: off, probe: off, reuse: off, seeds: 5,
         confirm: 2, soup: off}
trainer: {epochs: 20, batch_size: 32, precision: bf16, optimizer: sgd, momentum: 0, augmentation: none, patience: 3,
          warmup: 0, gradient_clip: null, device: "cuda:1", memory: 4GB}
export: {max_metric_drop: 0, max_output_difference: 1e-4}
"""
    config = load_study(write(folder, text), known=KNOWN)
    assert config.name == "digits-2"
    assert config.data.plugin == "image-folder"
    assert config.data.split_seed == 7
    assert config.backbones == (
        BackboneConfig(name="toy/small"),
        BackboneConfig(name="toy/large", weights="none", image_size=64),
    )
    assert config.plugins.allow == ("heads", "image-folder")
    assert config.space == {
        "learning_rate": Range(1e-5, 1e-2, log=True),
        "freeze_depth": Range(0, math.inf, integer=True),
        "dropout": Choice((0.0, 0.1)),
        "weight_decay": 0.01,
    }
    assert config.search == SearchConfig(
        trials=40,
        time_limit=5400.0,
        metric="f1_macro",
        seed=3,
        prune=False,
        probe=False,
        reuse=False,
        seeds=5,
        confirm=2,
        soup=False,
    )
    assert config.trainer.memory == 4_000_000_000
    assert config.trainer.gradient_clip is None
    assert config.trainer.device == "cuda:1"
    assert config.export.max_output_difference == 1e-4


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1d", 86400),
        ("0.5h", 1800),
        ("1.5e2", 150),
    ],
)
def test_time_limit_is_read_as_seconds(folder: Path, text: str, seconds: float) -> None:
    config = load_study(write(folder, f"data: photos\nsearch: {{time_limit: {text}}}"))
    assert config.search.time_limit == seconds
    assert isinstance(config.search.time_limit, float)


@pytest.mark.parametrize(
    "text", ["0", "-5", "0s", "1x", "m", "1.2.3s", "''", ".inf", ".nan", "true", "[1]", "30m1h", "1:30"]
)
def test_wrong_time_limit_is_refused(folder: Path, text: str) -> None:
    problem = problem_of(folder, f"data: photos\nsearch:\n  time_limit: {text}")
    assert (problem.where, problem.line) == ("search.time_limit", 3)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("1.5MiB", 3 * 2**19), ("10 kb", 10_000), ("0", 0), ("500", 500), ("auto", "auto")],
)
def test_memory_is_read_as_bytes(folder: Path, text: str, size: object) -> None:
    assert load_study(write(folder, f"data: photos\ntrainer: {{memory: {text}}}")).trainer.memory == size


@pytest.mark.parametrize("text", ["4 apples", "-1", "1.5", "1.2.3GB", "true", "null", "9" * 400 + "GB"])
def test_wrong_memory_is_refused(folder: Path, text: str) -> None:
    assert problem_of(folder, f"data: photos\ntrainer: {{memory: {text}}}").where == "trainer.memory"


def test_one_backbone_can_be_a_plain_string(folder: Path) -> None:
    assert load_study(write(folder, "data: photos\nbackbones: toy/small")).backbones == (BackboneConfig(name="toy/small"),)


def test_one_backbone_can_be_a_plain_mapping_and_keeps_its_lines(folder: Path) -> None:
    problem = problem_of(folder, "data: photos\nbackbones:\n  name: toy/small\n  image_size: 4\n")
    assert str(problem) == "line 4: backbones.0.image_size: must be at least 8, but got 4"


def test_sections_left_empty_take_their_defaults(folder: Path) -> None:
    config = load_study(write(folder, "data: photos\nsearch:\n  # trials: 3\nbackbones:\nspace:\n"))
    assert config.search == SearchConfig()
    assert config.backbones == ()


def test_paths_start_from_the_folder_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = load_study(write(folder, "data: ./photos/../photos\nbackbones: [{name: toy/small, weights: local}]"))
    assert config.data.path == folder / "photos"
    assert config.backbones[0].weights == str(folder / "local")


def test_paths_in_options_start_from_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder / "other"
    (other / "elsewhere").mkdir(parents=True)
    monkeypatch.chdir(other)
    study = write(folder, "data: photos\nbackbones: [toy/small]")
    config = load_study(study, ["data.path=elsewhere", "backbones.0.weights=elsewhere"])
    assert config.data.path == other / "elsewhere"
    assert config.backbones[0].weights == str(other / "elsewhere")
    with pytest.raises(ConfigError, match="in an option starts from the current folder"):
        load_study(study, ["data.path=photos"])


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("./local", "{folder}/local"),
        ("../{name}/local", "{folder}/local"),
        (".", "{folder}"),
        ("/models/a", "/models/a"),
        ("~/a", "/home/somebody/a"),
        ("owner/name", None),
        (".hidden", None),
        ("..odd/name", None),
    ],
)
def test_model_that_is_a_path_starts_from_the_folder_of_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: str, wanted: str | None
) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/somebody")
    model = model.format(name=folder.name)
    config = load_study(write(folder, f"data: photos\nbackbones: [toy/{model}]"))
    expected = model if wanted is None else wanted.format(folder=folder)
    assert config.backbones[0].name == f"toy/{expected}"
    if model == "./local":
        config = load_study(write(folder, "data: photos"), ["backbones=[toy/./local]"])
        assert config.backbones[0].name == "toy//local"


def test_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert load_study(write(folder, "data: ~/photos")).data.path == folder / "photos"


@pytest.mark.parametrize(
    ("data", "name"),
    [("my photos", "my-photos"), (".hidden", "hidden"), ("фото", "фото"), ("---", "study"), ("a.csv", "a.csv")],
)
def test_default_name_is_a_usable_form_of_the_folder_name(tmp_path: Path, data: str, name: str) -> None:
    (tmp_path / data).mkdir()
    assert study_from_data(tmp_path / data).name == name


def test_default_name_of_a_file_leaves_its_ending_out(tmp_path: Path) -> None:
    (tmp_path / "table.csv").touch()
    assert study_from_data(tmp_path / "table.csv").name == "table"


def test_byte_order_mark_is_ignored(folder: Path) -> None:
    path = folder / "study.yaml"
    path.write_bytes(b"\xef\xbb\xbfdata: photos\n")
    assert load_study(path).name == "photos"


def test_config_cannot_be_changed(folder: Path) -> None:
    config = study_from_data(folder / "photos")
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"
    with pytest.raises(ValueError, match="frozen"):
        config.search.trials = 5


def test_copies_are_equal_so_that_workers_can_be_sent_one(folder: Path) -> None:
    config = load_study(write(folder, "data: photos\nspace: {dropout: {choices: [0, 0.1]}}"))
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert config != load_study(folder / "study.yaml", ["search.trials=21"])
    assert config != "a study"


# --- all problems together, with lines ------------------------------------------------------------


def test_five_mistakes_are_five_problems_in_file_order_with_their_lines(folder: Path) -> None:
    text = """\
name: digits
data: photos
task: image-clasification
backbones:
  - toy/small
  - name: toy/large
    image_size: 4
space:
  learning_rate: {low: 1.0e-2, high: 1.0e-5, log: true}
search:
  trails: 40
trainer:
  epochs: ten
"""
    assert [str(problem) for problem in problems_of(folder, text, known=KNOWN)] == [
        "line 3: task: must be an installed task, but got 'image-clasification' "
        "(hint: did you mean `image-classification`?)",
        "line 7: backbones.1.image_size: must be at least 8, but got 4",
        "line 9: space.learning_rate.high: must be more than `low`, which is 0.01, but got 1e-05",
        "line 11: search.trails: is not a setting here; did you mean `trials`?",
        "line 13: trainer.epochs: must be `auto` or a whole number of at least 1, but got 'ten'",
    ]


def test_names_of_plugins_are_checked_together_with_the_schema(folder: Path) -> None:
    text = """\
data: {path: photos, plugin: image-foldr}
task: image-classification
backbones: [toy/small, toy/smal, 5]
space:
  dropuot: 0.1
  learning_rate: {low: 1}
search: {metric: acuracy, trials: 0}
"""
    found = [(problem.line, problem.where, problem.hint) for problem in problems_of(folder, text, known=KNOWN)]
    assert found == [
        (1, "data.plugin", "did you mean `image-folder`?"),
        (3, "backbones.1.name", "did you mean `toy/small`?"),
        (3, "backbones.2", None),
        (5, "space.dropuot", "did you mean `dropout`?"),
        (6, "space.learning_rate.high", None),
        (7, "search.metric", "did you mean `accuracy`?"),
        (7, "search.trials", None),
    ]
    # Without anything known, only the schema speaks.
    assert [problem.where for problem in problems_of(folder, text)] == [
        "backbones.2",
        "space.learning_rate.high",
        "search.trials",
    ]


def test_metric_must_be_of_the_task_and_of_any_task_where_none_is_given(folder: Path) -> None:
    load_study(write(folder, "data: photos\nsearch: {metric: mean_error}"), known=KNOWN)
    problem = problem_of(folder, "data: photos\ntask: image-classification\nsearch: {metric: mean_error}", known=KNOWN)
    assert problem.message == "must be a metric of image-classification, but got 'mean_error'"
    assert problem.hint == "known: `accuracy`, `f1_macro`"


def test_broken_plugin_is_named_where_a_name_is_missing(folder: Path) -> None:
    known = Known(frozenset(), {}, frozenset(), check_backbone, broken=("audio-plugin",))
    problem = problem_of(folder, "data: {path: photos, plugin: audio-folder}", known=known)
    assert "none is installed" in str(problem)
    assert "audio-plugin" in str(problem)


def test_plugins_section_is_given_to_whoever_finds_out_what_is_known(folder: Path) -> None:
    seen: list[PluginsConfig] = []

    def find(plugins: PluginsConfig) -> Known:
        seen.append(plugins)
        return KNOWN

    load_study(write(folder, "data: photos\nplugins: {allow: [heads]}"), ["plugins.strict=true"], find)
    assert seen == [PluginsConfig(allow=("heads",), strict=True)]
    with pytest.raises(ConfigError) as caught:
        load_study(write(folder, "data: photos\ntask: nope\nplugins: {allow: heads}"), known=find)
    assert [str(problem) for problem in caught.value.problems] == ["line 3: plugins.allow: must be a list, but got 'heads'"]
    assert len(seen) == 1, "no plugin may be loaded while it is unclear which are allowed"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("search: {trials: 0}", "search.trials: must be at least 1, but got 0"),
        ("search: {trials: 2.5}", "search.trials: must be a whole number, but got 2.5"),
        ("search: {trials: true}", "search.trials: must be a whole number, but got true"),
        ("search: {trials: '5'}", "search.trials: must be a whole number, but got '5' (hint: remove the quotes)"),
        ("search: {trials: }", "search.trials: must be a whole number, but got nothing"),
        ("search: {trials: [1]}", "search.trials: must be a whole number, but got a list"),
        ("search: {seed: 4294967296}", "search.seed: must be at most 4294967295, but got 4294967296"),
        ("search: {prune: maybe}", "search.prune: must be true or false, but got 'maybe'"),
        ("search: {prune: 1}", "search.prune: must be true or false, but got 1"),
        ("search: {probe: 1}", "search.probe: must be true or false, but got 1"),
        ("search: {reuse: auto}", "search.reuse: must be true or false, but got 'auto'"),
        ("search: {soup: 2}", "search.soup: must be true or false, but got 2"),
        ("search: {seeds: 0}", "search.seeds: must be at least 1, but got 0"),
        ("search: {seeds: 1.5}", "search.seeds: must be a whole number, but got 1.5"),
        ("search: {confirm: 0}", "search.confirm: must be at least 1, but got 0"),
        ("search: 5", "search: must be a mapping of settings, but got 5"),
        ("search: {metric: 1}", "search.metric: must be text, but got 1 (hint: put it in quotes)"),
        ("task: ''", "task: must not be empty, but got ''"),
        ("space: [1]", "space: must be a mapping of settings, but got a list"),
        ("backbones: 5", "backbones: must be a list, but got 5"),
        ("backbones: [{weights: none}]", "backbones.0.name: is missing"),
        ("trainer: {warmup: 0.6}", "trainer.warmup: must be at most 0.5, but got 0.6"),
        ("trainer: {warmup: .nan}", "trainer.warmup: must be a finite number, but got nan"),
        ("trainer: {gradient_clip: 0}", "trainer.gradient_clip: must be more than 0, but got 0"),
        ("trainer: {gradient_clip: much}", "trainer.gradient_clip: must be a number, but got 'much'"),
        ("trainer: {momentum: 1}", "trainer.momentum: must be less than 1, but got 1"),
        ("trainer: {patience: 0}", "trainer.patience: must be at least 1, but got 0"),
        (
            "trainer: {optimizer: adam}",
            "trainer.optimizer: must be one of `adamw`, `sgd`, but got 'adam' (hint: did you mean `adamw`?)",
        ),
        ("trainer: {batch_size: 0}", "trainer.batch_size: must be `auto` or a whole number of at least 1, but got 0"),
        (
            "trainer: {device: gpu}",
            "trainer.device: must be `auto`, `cpu`, `cuda`, `cuda:N` or `mps`, but got 'gpu' "
            "(hint: `autoft doctor` lists the devices of this machine)",
        ),
        ("export: {max_metric_drop: -1}", "export.max_metric_drop: must be at least 0, but got -1"),
        ("export: {max_output_difference: 0}", "export.max_output_difference: must be more than 0, but got 0"),
        ("plugins: {allow: [1]}", "plugins.allow.0: must be text, but got 1 (hint: put it in quotes)"),
        (
            "colour: red",
            "colour: is not a setting here "
            "(hint: settings here: name, data, task, backbones, plugins, space, search, trainer, export, logging)",
        ),
        (
            "name: ../escape",
            "name: must be at most 100 letters, digits, `.`, `_` or `-`, and begin with a letter or digit, "
            "but got '../escape' (hint: it names the run folder)",
        ),
        ("name: 2024", "name: must be text, but got 2024 (hint: put it in quotes)"),
        (
            "backbones: [a/b, a/b]",
            "backbones.1: must differ from the other backbones, but repeats backbones.0 "
            "(hint: change its weights or image_size)",
        ),
    ],
)
def test_wrong_value_is_told_in_plain_words(folder: Path, line: str, message: str) -> None:
    assert str(problem_of(folder, f"data: photos\n{line}\n")) == f"line 2: {message}"


@pytest.mark.parametrize(
    ("text", "where", "line"),
    [
        ("data: {path: photos, validation_share: 0.5, test_share: 0.5}", "data.test_share", 1),
        ("data:\n  path: photos\n  validation_share: 0.8", "data.validation_share", 3),
        ("data:\n  path: photos\n  validation_share: 0", "data.validation_share", 3),
        ("data:\n  path: photos\n  test_share: 0", "data.test_share", 3),
        ("data:\n  path: photos\n  max_rejected: 1", "data.max_rejected", 3),
    ],
)
def test_shares_must_leave_samples_to_train_on(folder: Path, text: str, where: str, line: int) -> None:
    problem = problem_of(folder, text)
    assert (problem.where, problem.line) == (where, line)


def test_data_that_is_not_there_is_a_problem(folder: Path) -> None:
    problem = problem_of(folder, "# comment\ndata: phtos\n")
    assert problem.line == 2
    assert problem.message == f"must be an existing file or folder, but there is nothing at {str(folder / 'phtos')!r}"
    assert problem.hint == "a relative path starts from the folder of the study file"


@pytest.mark.parametrize("path", ["''", '"a\\0b"', "a" * 5000, "~nobody-of-this-name/x"])
def test_impossible_data_path_is_a_problem(folder: Path, path: str) -> None:
    assert problem_of(folder, f"data: {path}").where == "data.path"


def test_missing_data_is_a_problem(folder: Path) -> None:
    assert str(problem_of(folder, "name: x\n")) == "line 1: data: is missing"
    assert str(problem_of(folder, "name: x\ndata: {plugin: y}\n")) == "line 2: data.path: is missing"


def test_misspelt_setting_is_not_reported_as_missing_too(folder: Path) -> None:
    assert str(problem_of(folder, "dta: photos")) == "line 1: dta: is not a setting here; did you mean `data`?"
    assert problem_of(folder, "data: {pth: photos}").where == "data.pth"
    assert problem_of(folder, "data: photos\nspace: {x: {choises: [1]}}").where == "space.x.choises"


def test_weights_that_are_not_there_are_a_problem_with_the_nearest_word(folder: Path) -> None:
    problem = problem_of(folder, "data: photos\nbackbones:\n  - name: a/b\n    weights: pretraned\n")
    assert (problem.line, problem.hint) == (4, "did you mean `pretrained`?")


# --- space ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("x: 0.1", 0.1),
        ("x: 0", 0),
        ("x: 1e-5", 1e-5),
        ("x: true", True),
        ("x: strong", "strong"),
        ("x: {low: 0, high: 1}", Range(0.0, 1.0)),
        ("x: {low: 1e-5, high: 1E+2, log: true}", Range(1e-5, 100.0, log=True)),
        ("x: {choices: [1, a, true, 2.5]}", None),
        ("x: {choices: [2, a, true, 2.5]}", Choice((2, "a", True, 2.5))),
        ("freeze_depth: 3", 3),
        ("freeze_depth: all", "all"),
        ("freeze_depth: {low: 1, high: 5}", Range(1, 5, integer=True)),
        ("freeze_depth: {low: 0, high: all}", Range(0, math.inf, integer=True)),
        ("freeze_depth: {choices: [0, 4, all]}", Choice((0, 4, "all"))),
    ],
)
def test_space_entry_is_read(folder: Path, entry: str, expected: SpaceEntry | None) -> None:
    text = f"data: photos\nspace: {{{entry}}}"
    if expected is None:  # 1 and true are equal to Python, and so to the sampler
        assert "listed twice" in problem_of(folder, text).message
        return
    (found,) = load_study(write(folder, text)).space.values()
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("entry", "where", "message"),
    [
        ("x: {low: 1, high: 1}", "space.x.high", "must be more than `low`, which is 1, but got 1"),
        ("x: {low: 0, high: 1, log: true}", "space.x.log", "needs a `low` of more than 0, but `low` is 0"),
        ("x: {low: 0, high: all}", "space.x.high", "must be a number, but got 'all'"),
        ("x: {low: a, high: 1}", "space.x.low", "must be a number, but got 'a'"),
        ("x: {low: 0, high: .inf}", "space.x.high", "must be a finite number, but got inf"),
        ("x: {low: 0, high: 1, logg: true}", "space.x.logg", "is not a setting here; did you mean `log`?"),
        ("x: {low: 0}", "space.x.high", "is missing"),
        ("x: {choices: []}", "space.x.choices", "must be a list of values, but got an empty one"),
        ("x: {choices: 5}", "space.x.choices", "must be a list of values, but got 5"),
        ("x: {choices: [1, 1]}", "space.x.choices", "must all be different, but 1 is listed twice"),
        ("x: {choices: [[1]]}", "space.x.choices", "must be text, a finite number, or true or false, but got a list"),
        ("x: {choices: [.nan]}", "space.x.choices", "must be text, a finite number, or true or false, but got nan"),
        ("x: [1, 2]", "space.x", "must be a value, `{low: .., high: ..}` or `{choices: [..]}`, but got a list"),
        ("x: {a: 1, b: 2}", "space.x", "must be a value, `{low: .., high: ..}` or `{choices: [..]}`, but got a mapping"),
        ("x: {}", "space.x", "must be a value, `{low: .., high: ..}` or `{choices: [..]}`, but got a mapping"),
        ("x: ", "space.x", "must be a value, `{low: .., high: ..}` or `{choices: [..]}`, but got nothing"),
        ("x: .nan", "space.x", "must be text, a finite number, or true or false, but got nan"),
        ("freeze_depth: -1", "space.freeze_depth", "must be a whole number of stages or `all`, but got -1"),
        (
            "freeze_depth: {low: 0, high: most}",
            "space.freeze_depth.high",
            "must be a whole number of stages or `all`, but got 'most'",
        ),
        ("freeze_depth: {low: all, high: all}", "space.freeze_depth.low", "must be a whole number, but got 'all'"),
        (
            "freeze_depth: {low: 0, high: 1.5}",
            "space.freeze_depth.high",
            "must be a whole number of stages or `all`, but got 1.5",
        ),
        (
            "freeze_depth: {choices: [0, few]}",
            "space.freeze_depth.choices",
            "must be a whole number of stages or `all`, but got 'few'",
        ),
    ],
)
def test_wrong_space_entry_is_refused(folder: Path, entry: str, where: str, message: str) -> None:
    problem = problem_of(folder, f"data: photos\nspace:\n  {entry}\n")
    assert (problem.where, problem.line, problem.message) == (where, 3, message)


def test_two_mistakes_in_one_entry_are_two_problems(folder: Path) -> None:
    found = problems_of(folder, "data: photos\nspace:\n  x:\n    low: 0\n    high: -1\n    log: true\n")
    assert [(problem.line, problem.where) for problem in found] == [(5, "space.x.high"), (6, "space.x.log")]


# --- options --------------------------------------------------------------------------------------


def test_options_win_over_the_file(folder: Path) -> None:
    study = write(folder, "data: photos\nsearch: {trials: 3, seed: 1}\nbackbones: [a/b, c/d]\nspace: {x: [broken]}")
    config = load_study(
        study,
        [
            "search.trials=5",
            "search.trials=6",
            "trainer.gradient_clip=1e-1",
            "backbones.1.image_size=32",
            "space.x={choices: [1, 2]}",
            "data.validation_share=0.2",
            "task=some-task",
        ],
    )
    assert (config.search.trials, config.search.seed) == (6, 1)
    assert config.trainer.gradient_clip == 0.1
    assert [backbone.image_size for backbone in config.backbones] == [None, 32]
    assert config.space == {"x": Choice((1, 2))}
    assert config.data == DataConfig(path=folder / "photos", validation_share=0.2)
    assert config.task == "some-task"
    assert load_study(study, ["space={}", "backbones=[e/f]"]).backbones == (BackboneConfig(name="e/f"),)
    assert load_study(study, ["space={}", "backbones=e/f"]).backbones == (BackboneConfig(name="e/f"),)


@pytest.mark.parametrize("mark", ["|", ";", ",", "#", ">", "-", "::"])
def test_marks_in_options_are_plain_text(folder: Path, mark: str) -> None:
    study = write(folder, "data: photos")
    assert load_study(study, [f"data.delimiter={mark}"]).data.delimiter == mark


def test_option_replaces_what_was_wrong_in_the_file(folder: Path) -> None:
    assert load_study(write(folder, "data: photos\nsearch: {trials: !!int 3}"), ["search.trials=4"]).search.trials == 4


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("search.trials=0", "search.trials: must be at least 1, but got 0 (option `search.trials=0`)"),
        (
            "serch.trials=1",
            "serch: is not a setting here; did you mean `search`? (option `serch.trials=1`)",
        ),
        ("search.trials", "search.trials: must be written as `setting=value` (option `search.trials`)"),
        ("=5", ": must be written as `setting=value` (option `=5`)"),
        ("a..b=5", "a..b: must be written as `setting=value` (option `a..b=5`)"),
        ("task=[", "task: must be valid YAML, but this is not"),
        ("task=&a b", "task: must not use YAML anchors, but got `&a`"),
        ("backbones.1.weights=none", "backbones.1.weights: must name an item from 0 to 0, but got '1'"),
        ("name.x=1", "name.x: cannot be set, because `name` is not a mapping (option `name.x=1`)"),
        ("data.path=", "data.path: "),
        ("search={trials: 1, trials: 2}", "search.trials: must be set once"),
    ],
)
def test_wrong_option_is_named_and_has_no_line(folder: Path, option: str, expected: str) -> None:
    problem = problem_of(folder, "name: n\ndata: photos\nbackbones: [a/b]\n", (option,))
    assert problem.line is None
    assert str(problem).startswith(expected)
    assert option in str(problem)


def test_problems_of_options_come_after_those_of_the_file_in_their_order(folder: Path) -> None:
    problems = problems_of(folder, "data: photos\ntrainer: {epochs: 0}", ("search.trials=0", "export.max_metric_drop=-1"))
    assert [problem.where for problem in problems] == ["trainer.epochs", "search.trials", "export.max_metric_drop"]


def test_bare_data_path_makes_a_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config = study_from_data(Path("photos"), ["search.trials=2"], KNOWN)
    assert config.data.path == folder / "photos"
    assert config.search.trials == 2
    assert config.source == "options"
    assert config == load_study(write(folder, "data: photos\nsearch: {trials: 2}"))


def test_bare_data_path_that_is_not_there_is_a_problem(folder: Path) -> None:
    with pytest.raises(ConfigError, match="options has 1 problem") as caught:
        study_from_data(folder / "nowhere")
    assert (caught.value.problems[0].where, caught.value.problems[0].line) == ("data.path", None)


# --- problems found later -------------------------------------------------------------------------


def test_problem_found_later_has_the_line_of_its_value(folder: Path) -> None:
    text = "data: photos\nbackbones:\n  - a/b\n  - name: c/d\n    weights: none\nsearch:\n  metric: f1\n"
    config = load_study(write(folder, text), ["task=t"])
    assert config.problem("search.metric", "no", "do").line == 7
    assert config.problem("backbones.0.name", "no").line == 3
    assert config.problem("backbones.1.weights", "no").line == 5
    assert config.problem("search.trials", "not given: the line of its section").line == 6
    assert config.problem("task", "no") == Problem("task", "no (option `task=t`)", None, None)
    assert study_from_data(folder / "photos").problem("task", "no", "hint") == Problem("task", "no", None, "hint")


# --- files that are no study ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"", None, "must hold settings, but is empty"),
        (b"# only a comment\n", None, "must hold settings, but is empty"),
        (b"- a\n", 1, "must be a mapping of settings, but is a list"),
        (b"\n\nhello", 3, "must be a mapping of settings, but is 'hello'"),
        (b"data: x\nname: \xff\n", 2, "must be UTF-8 text, but byte 0xff is not"),
        (b"data: x\nname: \x00\n", 2, "must be plain text, but holds the control character '\\x00'"),
        (b"\x89PNG\r\n\x1a\n", 1, "must be UTF-8 text"),
        (b"data: x\nsearch: {trials: 1\n", 3, "must be valid YAML, but this is not: while parsing a flow mapping"),
        (b"data: x\n\ttrials: 1\n", 2, "must be valid YAML"),
        (b"data: x\n---\ndata: y\n", 2, "must be valid YAML"),
        (b'data: "\\UFFFFFFFF"', None, "must be valid YAML"),
        (b"data: " + b"[" * 100_000, 1, "must be valid YAML, but this is not: more than 20 levels deep"),
        (b"# " + b"x" * 1_000_000, None, "must be at most 1000000 bytes, but is larger"),
    ],
)
def test_file_that_is_no_study_is_refused(tmp_path: Path, content: bytes, line: int | None, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    (problem,) = caught.value.problems
    assert problem.message.startswith(message)
    assert (problem.where, problem.line) == ("study file", line)
    assert caught.value.source == str(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_study(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match=r"must be a file, but is a folder"):
        load_study(tmp_path)
    with pytest.raises(ConfigError, match=r"must be readable"):
        load_study(tmp_path / "a\0b")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(folder: Path) -> None:
    path = write(folder, "data: photos")
    path.chmod(0)
    with pytest.raises(ConfigError, match="must be readable"):
        load_study(path)


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("name: n\ndata: photos\ntask: &a x", "task", "must not use YAML anchors, but got `&a`"),
        ("name: n\ndata: photos\ntask: *a", "task", "must not use YAML aliases, but got `*a`"),
        ("name: n\ndata: photos\ntask: !!python/object:os.system x", "task", "must not use YAML tags"),
        ("name: n\ndata: photos\ntask: ! x", "task", "must not use YAML tags, but got `!`"),
        ("name: n\ndata: photos\n&a task: x", "task", "must not use YAML anchors"),
        ("name: n\ndata: photos\n? [task]\n: x", "?", "must be a plain word"),
        ("name: n\ndata: photos\n<<: {task: x}", "<<", "is not a setting here"),
        ("name: n\ndata: photos\ndata: local", "data", "must be set once, but line 2 sets it already"),
        ('name: n\ndata: photos\ntask: "\\ud800"', "task", "must be valid Unicode"),
        ('name: n\ndata: photos\n"\\ud800": 1', "\\ud800", "must be a plain word"),
        ('name: n\ndata: photos\n"\\x1b[2J": 1', "\\x1b[2J", "is not a setting here"),
    ],
)
def test_what_a_study_file_must_not_hold_is_one_problem_with_its_line(
    folder: Path, text: str, where: str, message: str
) -> None:
    problem = problem_of(folder, text)
    assert problem.message.startswith(message)
    assert (problem.where, problem.line) == (where, 3)


def test_refused_value_of_a_plain_backbone_is_one_problem(folder: Path) -> None:
    problem = problem_of(folder, "data: photos\nbackbones:\n  name: *a\n  image_size: 32\n")
    assert (problem.where, problem.line) == ("backbones.0.name", 3)


def test_malformed_option_does_not_hide_problems_of_the_file(folder: Path) -> None:
    problems = problems_of(folder, "data: photos\nsearch: {trials: 0}", ("search",))
    assert [problem.where for problem in problems] == ["search.trials", "search"]


def test_refused_values_do_not_hide_other_problems(folder: Path) -> None:
    text = "data: *a\nsearch: {trials: !!int 0, seed: -1}\n"
    assert [problem.where for problem in problems_of(folder, text)] == ["data", "search.trials", "search.seed"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1_000.5", 1000.5),
        (".5", 0.5),
        ("-2", -2),
        ("1_000", 1000),
        ("no", False),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x1F", "0x1F"),
        ("9" * 5000, "9" * 5000),
        ("'1'", "1"),
        ("_1", "_1"),
        ("1e", "1e"),
        ("=", "="),
    ],
)
def test_plain_words_mean_what_people_expect(folder: Path, text: str, value: object) -> None:
    found = load_study(write(folder, f"data: photos\nspace:\n  x: {text}\n")).space["x"]
    assert found == value
    assert type(found) is type(value)


# --- writing --------------------------------------------------------------------------------------


def test_identity_is_plain_json_and_leaves_the_budget_out(folder: Path) -> None:
    study = write(folder, "data: photos\nspace: {freeze_depth: {low: 0, high: all}}\nsearch: {trials: 3}")
    identity = load_study(study).identity()
    assert json.loads(json.dumps(identity, allow_nan=False)) == identity
    assert identity["space"] == {"freeze_depth": {"low": 0, "high": "all", "log": False}}
    assert load_study(study, ["search.trials=50", "search.time_limit=1h"]).identity() == identity
    decided = ("search.seeds=1", "search.confirm=1", "search.probe=false", "search.reuse=false", "search.soup=false")
    for other in (*decided, "search.seed=1", "trainer.epochs=3", "space.dropout=0.5", "name=x", "data.split_seed=1"):
        assert load_study(study, [other]).identity() != identity, other


def test_written_study_is_equal_wherever_it_is_put(folder: Path) -> None:
    config = load_study(write(folder, "data: photos\nbackbones: [{name: a/b, weights: local}]\nsearch: {time_limit: 1h}"))
    elsewhere = folder / "runs"
    elsewhere.mkdir()
    again = load_study(write(elsewhere, config.to_yaml()))
    assert again == config
    assert again.source != config.source


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20) | st.sampled_from(
    [
        "1e-5",
        "yes",
        "null",
        "~",
        "010",
        "1:30",
        "=",
        "<<",
        "all",
        "2024-01-01",
        "- a",
        "a: b",
        "# c",
        "\x85",
        "\ufeff",
        "'",
        '"',
    ]
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
scalars = words | numbers | st.integers(-(10**60), 10**60) | st.booleans()
ranges = st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: Range(*pair))
depths = st.integers(0, 50)
entries = scalars | ranges | st.lists(scalars, min_size=1, max_size=4, unique=True).map(lambda found: Choice(tuple(found)))
spaces = st.dictionaries(words.filter(lambda name: name != "freeze_depth"), entries, max_size=4)
freezing = st.one_of(
    st.just({}),
    st.just({"freeze_depth": "all"}),
    depths.map(lambda depth: {"freeze_depth": depth}),
    depths.map(lambda depth: {"freeze_depth": Range(depth, depth + 1, integer=True)}),
    depths.map(lambda depth: {"freeze_depth": Range(depth, math.inf, integer=True)}),
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workshop")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    task=st.none() | words,
    backbones=st.lists(st.builds(BackboneConfig, name=words, image_size=st.none() | st.integers(8, 999)), max_size=3),
    space=spaces,
    freeze=freezing,
    time_limit=st.none() | st.floats(1e-3, 1e12),
    memory=st.just("auto") | st.integers(0, 10**15),
)
def test_any_study_survives_writing_and_reading(
    workshop: Path,
    task: str | None,
    backbones: list[BackboneConfig],
    space: Mapping[str, SpaceEntry],
    freeze: Mapping[str, SpaceEntry],
    time_limit: float | None,
    memory: int | str,
) -> None:
    config = StudyConfig.model_validate(
        {
            "name": "any",
            "data": {"path": workshop},
            "task": task,
            "backbones": list({(each.name, each.image_size): each for each in backbones}.values()),
            "space": {**space, **freeze},
            "search": {"time_limit": time_limit},
            "trainer": {"memory": memory},
        }
    )
    again = load_study(write(workshop, config.to_yaml()))
    assert again == config
    assert {name: type(value) for name, value in again.space.items()} == {
        name: type(value) for name, value in config.space.items()
    }
    assert again.identity() == config.identity()
    json.dumps(config.identity(), allow_nan=False)


# --- any input ------------------------------------------------------------------------------------


def loads_or_raises_config_error(path: Path, overrides: tuple[str, ...] = ()) -> None:
    try:
        config = load_study(path, overrides, KNOWN)
    except ConfigError as error:
        problems = error.problems
        str(error).encode("utf-8")  # can be printed
    else:
        config.to_yaml()
        return
    assert problems
    lines = [problem.line for problem in problems if problem.line is not None]
    assert lines == sorted(lines)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
@example(content=b'"\\U00110000": 1')
@example(content=b"%YAML 1." + b"1" * 5000 + b"\n---\n")
@example(content=b"%TAG ! tag:\n---\n!x")
@example(content=b"*")
@example(content=b"data: !<")
def test_any_bytes_load_or_are_a_config_error(workshop: Path, content: bytes) -> None:
    path = workshop / "bytes.yaml"
    path.write_bytes(content)
    loads_or_raises_config_error(path)


yaml_text = st.text("ab01.-_:,[]{}&*!|>'\"%@`#?~ \n\t\\Ue\ud800é\x85\u2028", max_size=60)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=yaml_text, setting=st.sampled_from(["", "data: ", "data: .\nspace: ", "data: .\nbackbones: ", "data: .\nname: "])
)
def test_any_text_loads_or_is_a_config_error(workshop: Path, text: str, setting: str) -> None:
    path = workshop / "text.yaml"
    path.write_bytes((setting + text).encode("utf-8", "surrogatepass"))
    loads_or_raises_config_error(path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
settings_of = {
    section: st.dictionaries(st.sampled_from(sorted(model.model_fields)) | words, plain, max_size=4)
    for section, model in {
        "data": DataConfig,
        "backbones": BackboneConfig,
        "plugins": PluginsConfig,
        "search": SearchConfig,
        "trainer": TrainerConfig,
        "export": ExportConfig,
    }.items()
}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            **{section: wanted | plain for section, wanted in settings_of.items()},
            "backbones": st.lists(settings_of["backbones"] | plain, max_size=3) | plain,
            "space": st.dictionaries(
                st.sampled_from(["freeze_depth", "dropout"]) | words,
                st.dictionaries(st.sampled_from(["low", "high", "log", "choices"]) | words, plain, max_size=4) | plain,
                max_size=4,
            ),
            "name": plain,
            "task": plain,
        },
    )
)
def test_any_values_load_or_are_a_config_error_in_plain_words(workshop: Path, values: dict[str, object]) -> None:
    path = workshop / "values.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    try:
        load_study(path, known=KNOWN)
        problems: tuple[Problem, ...] = ()
    except ConfigError as error:
        problems = error.problems
    assert not [problem for problem in problems if "is not valid (" in problem.message], "a rule without words of ours"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    option=st.text(max_size=30)
    | yaml_text.map("space.x=".__add__)
    | st.builds("{}.{}={}".format, st.sampled_from(["data", "backbones", "search", "name", "task", "x"]), words, yaml_text)
)
def test_any_option_loads_or_is_a_config_error(workshop: Path, option: str) -> None:
    loads_or_raises_config_error(write(workshop, "data: .\nbackbones: [toy/small]\n"), (option,))
