"""Commands about a bundle: answer, score, measure, publish, check, sign."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from autoft.cli.app import BAD_INPUT, app
from autoft.cli.options import AsJson, NoPlugins, VariantName
from autoft.cli.printing import print_note, print_pairs, print_table


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUTS]...",
            help="Files of images; or texts, of a bundle for pairs two each, or - to read a text a line.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="A file of texts: .txt (a text a line), .csv, .tsv or .jsonl.  [default: none]"),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Inputs at once.", show_default=True)] = 32,
    variant: VariantName = "fp32",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line: the input and its answer.  [default: off]")
    ] = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Answer for images or texts with a bundle, through ONNX Runtime.

    An input that cannot be answered is named on stderr, the others are still answered, and the exit code is 2.
    """
    from autoft import deploy
    from autoft.discovery import discover

    opened = deploy.open_bundle(bundle, discover(enabled=not no_plugins), variant=variant)
    unanswered = cut = 0
    for answer in deploy.predict(opened, deploy.inputs_of(opened, inputs or (), file), batch_size=batch_size):
        unanswered += "error" in answer
        cut += "cut" in answer
        print(deploy.line(opened, answer, as_json=as_json), file=sys.stderr if "error" in answer else sys.stdout)
    if cut:
        print(f"{cut} longer than the model takes: answered by their beginning", file=sys.stderr)
    if unanswered:
        raise typer.Exit(BAD_INPUT)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: Annotated[Path, typer.Argument(help="Labelled data, such as a folder with a folder of images a class.")],
    split: Annotated[
        str | None,
        typer.Option("--split", help="all, train, validation or test.  [default: test where the data has one, else all]"),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="COLUMN", help="Column of the texts; twice for pairs.  [default: the bundle's]"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="COLUMN", help="Column of the labels; may be repeated.  [default: the bundle's]"),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples at once.", show_default=True)] = 32,
    variant: VariantName = "fp32",
    as_json: AsJson = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Score a bundle on labelled data, from the raw inputs through ONNX Runtime."""
    from autoft import deploy
    from autoft.discovery import discover

    catalog = discover(enabled=not no_plugins)
    opened = deploy.open_bundle(bundle, catalog, variant=variant)
    named = {"text": text, "label": label}
    columns = {name: value[0] if len(value) == 1 else value for name, value in named.items() if value}
    scores = deploy.evaluate(opened, data, catalog, split=split, batch_size=batch_size, columns=columns, on_note=print_note)
    if as_json:
        print(json.dumps(scores))
    else:
        print_pairs((name, f"{value:.6g}" if isinstance(value, float) else value) for name, value in scores.items())


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to measure.")],
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="Threads of one run; 0 leaves the choice to ONNX Runtime.")
    ] = 1,
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Samples a run; may be repeated.  [default: 1 and 8]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle's variants on this machine: latency, size, peak memory.

    The bundle's own golden samples are run, without preprocessing, and the variants take turns.
    """
    from autoft.bench import fastest, report

    measured = report(bundle, threads=threads, batch_sizes=tuple(dict.fromkeys(batch_sizes or (1, 8))))
    if as_json:
        content = {"threads": threads, "variants": {name: one.to_dict() for name, one in measured.items()}}
        print(json.dumps({**content, "fastest": fastest(measured)}, indent=2))
        return
    sizes = list(next(iter(measured.values())).latency)
    rows = [("VARIANT", *(f"P50/P95 MS, {size} AT ONCE" for size in sizes), "MB", "PEAK MB")]
    for name, one in measured.items():
        cells = (f"{each.p50:.3g} / {each.p95:.3g}" for each in one.latency.values())
        rows.append((name, *cells, f"{one.size_mb:.3g}", "unknown" if one.peak_mb is None else f"{one.peak_mb:.0f}"))
    print_table(rows)


@app.command()
def push(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to upload.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the Hugging Face hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.  [default: private]")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch to commit to.  [default: the main one]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a bundle to the Hugging Face hub, as it is; transformers.js and others load it from there.

    Every file is checked against its hash first. A bundle may hold some of your validation samples (golden/), so a new
    repository is private unless you say --public; `autoft export RUN --set export.golden=0` makes a bundle without them.
    """
    from dataclasses import asdict

    from autoft.push import push as upload

    done = upload(bundle, repository, public=public, revision=revision)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    print_pairs(
        [
            ("url", done.url),
            ("commit", done.commit),
            ("files", f"{done.files}, {done.samples} validation samples among them"),
        ]
    )


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; nothing in it is executed.")],
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", metavar="FILE", help="Require a signature by this key (PEM).  [default: none]"),
    ] = None,
    as_json: AsJson = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Verify a bundle: contract, hashes, graphs, signature, golden vectors; exits with 2 where a check fails.

    A check that cannot be made, or that nobody asked for, is shown as `--` and is no failure.
    """
    from dataclasses import asdict

    from autoft.discovery import discover
    from autoft.verify import passed
    from autoft.verify import verify as verify_bundle

    checks = verify_bundle(bundle, discover(enabled=not no_plugins), public_key=public_key)
    if as_json:
        print(json.dumps({"bundle": str(bundle), "ok": passed(checks), "checks": list(map(asdict, checks))}, indent=2))
    else:
        marks = {"ok": "ok", "failed": "FAIL", "not checked": "--"}
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{marks[check.outcome]:4}  {check.name:{width}}  {check.message}")
    if not passed(checks):
        raise typer.Exit(BAD_INPUT)


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private elliptic key (PEM).", show_default=False)],
) -> None:
    """Sign a bundle with your key, for `autoft verify --public-key`; needs `pip install 'autoft[sign]'`.

    The password of a key that has one is read from the environment variable AUTOFT_KEY_PASSWORD.
    """
    from autoft.export.contract import read_contract
    from autoft.signing import sign_bundle

    read_contract(bundle)  # a folder that is no bundle is not signed
    print(sign_bundle(bundle, key, password=os.environ.get("AUTOFT_KEY_PASSWORD")))
