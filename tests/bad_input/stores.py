"""Results that were altered, cut, swapped or come from elsewhere; runs that are asked for by odd names; exports."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bad_input.case import STUDY, Case, Place
from tests.running.world import THREE, body

from tuneoff.study.identity import digest

STORE = "runs/three"
RUN_ID = "three/lora-rank4"
Spoil = Callable[[Place], object]


def folder_of(place: Place, method: str, lr: float | None = None) -> Path:
    """Return the folder of a finished run that was tested, of a method."""
    for path in sorted((place.folder / STORE).glob("*/record.json")):
        run = json.loads(path.read_text())["run"]
        if run["method"]["method"] == method and (path.parent / "test.json").exists():
            return path.parent
    raise AssertionError(method)


def record(place: Place, change: Callable[[dict[str, Any]], object], *, is_signed: bool = True) -> None:
    """Change every record, with a checksum that is right for what it then holds, or without."""
    for path in (place.folder / STORE).glob("*/record.json"):
        found = json.loads(path.read_text())
        del found["checksum"]
        before = digest(found)
        change(found)
        path.write_text(json.dumps(found | {"checksum": digest(found) if is_signed else before}))


def asked(spoil: Spoil, *arguments: str) -> Callable[[Place], Sequence[str]]:
    def build(place: Place) -> Sequence[str]:
        place.file(STUDY, json.dumps(body("three", THREE, seeds=[0, 1])))
        spoil(place)
        return arguments

    return build


def export(spoil: Spoil, name: str = RUN_ID) -> Callable[[Place], Sequence[str]]:
    return asked(spoil, "export", name, "out")


def status(spoil: Spoil) -> Callable[[Place], Sequence[str]]:
    return asked(spoil, "status", STUDY)


def nothing(place: Place) -> None:
    """Leave all as it is."""


def every(name: str, content: str | bytes) -> Spoil:
    """Overwrite a file of every run."""

    def spoil(place: Place) -> None:
        for folder in (place.folder / STORE).iterdir():
            if (folder / name).exists():
                (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def cut(place: Place) -> None:
    for path in (place.folder / STORE).glob("*/record.json"):
        path.write_bytes(path.read_bytes()[:-30])


def swapped(place: Place) -> None:
    """Let two adapters change places."""
    paths = sorted((place.folder / STORE).glob("*/adapter_model.safetensors"))
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)


def exchanged(place: Place) -> None:
    """Let every record stand in the folder of another run."""
    paths = sorted((place.folder / STORE).glob("*/record.json"))
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)


def relabelled(place: Place) -> None:
    """Give every record the name of its folder and the settings of another run."""
    paths = sorted((place.folder / STORE).glob("*/record.json"))
    runs = [json.loads(path.read_text())["run"] for path in paths]
    for path, run in zip(paths, runs[1:] + runs[:1], strict=True):
        found = json.loads(path.read_text()) | {"run": run}
        del found["checksum"]
        path.write_text(json.dumps(found | {"checksum": digest(found)}))


def link_to_another(place: Place) -> None:
    """Let a run's folder be a link out of the store."""
    folder = folder_of(place, "lora")
    shutil.move(folder, place.folder / "outside")
    os.symlink(place.folder / "outside", folder)


def out_is_a_file(place: Place) -> None:
    place.file("out", "mine")


def out_has_content(place: Place) -> None:
    place.file("out/mine.txt", "mine")


def no_base(place: Place) -> None:
    shutil.rmtree(place.folder / "base")
    for path in (place.folder / STORE).glob("*/setup.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"root": str(place.folder)}))


def no_set_up(content: str) -> Spoil:
    """Overwrite what a run was set up with, and take its base away: it is then looked for by its name alone."""

    def spoil(place: Place) -> None:
        every("setup.json", content)(place)
        shutil.rmtree(place.folder / "base")

    return spoil


NOT_DONE = r"run [0-9a-f]{16} is not done.*`tuneoff run` finishes it"
STORES = (
    Case(
        "a record that was altered by hand",
        export(lambda place: record(place, lambda own: own["validation"].update(nll_nats=0.0), is_signed=False)),
        NOT_DONE,
    ),
    Case("a record that is cut", export(cut), NOT_DONE),
    Case("an empty record", export(every("record.json", "")), NOT_DONE),
    Case("a deep record", export(every("record.json", "[" * 100_000)), NOT_DONE),
    Case(
        "a record of an older version", export(lambda place: record(place, lambda own: own.update(version=1))), NOT_DONE
    ),
    Case(
        "a record with a key too many", export(lambda place: record(place, lambda own: own.update(extra=1))), NOT_DONE
    ),
    Case(
        "a record with NaN",
        export(lambda place: record(place, lambda own: own["provenance"].update(num_threads="NaN"))),
        NOT_DONE,
    ),
    Case("records in the folders of other runs", export(exchanged), NOT_DONE),
    Case("records with the settings of other runs", export(relabelled), NOT_DONE),
    Case("weights that were swapped", export(swapped), NOT_DONE),
    Case(
        "weights that are gone",
        export(lambda place: [path.unlink() for path in (place.folder / STORE).glob("*/adapter_model.safetensors")]),
        r"its weights are gone",
    ),
    Case(
        "a study that was cut",
        export(lambda place: place.file(f"{STORE}/study.json", "{")),
        r"no run is called 'three/lora-rank4'",
    ),
    Case("a set-up that was altered", export(no_set_up('{"root": 5}')), r"hub cannot be reached"),
    Case("a deep set-up", export(no_set_up("[" * 100_000)), r"hub cannot be reached"),
    Case("a base that is gone", export(no_base), r"hub cannot be reached|no such"),
    Case(
        "a run's folder that is a link out of the store",
        asked(link_to_another, "run", STUDY),
        r"is a link; results are not written through one",
    ),
    Case("an unknown run", export(nothing, "three/nothing"), r"no run is called 'three/nothing' under runs"),
    Case(
        "an arm that is misspelt",
        export(nothing, "three/lora-rank5"),
        r"no run is called .*Did you mean three/lora-rank",
    ),
    Case("a run by an empty name", export(nothing, ""), r"10 runs are called ''"),
    Case("a run by the start of every id", export(nothing, "three/"), r"runs? (are|is) called 'three/'"),
    Case(
        "a run above the folder",
        export(nothing, "../../three/lora-rank4"),
        r"no run is called '\.\./\.\./three/lora-rank4'",
    ),
    Case("a run by an absolute path", export(nothing, "/etc/passwd"), r"no run is called '/etc/passwd'"),
    Case("a run by dots alone", export(nothing, "three/.."), r"no run is called 'three/\.\.'"),
    Case("an escape code for a run", export(nothing, "three/\x1b[31mlora"), r"no run is called 'three/"),
    Case("an export of zero-shot", export(nothing, "three/zero-shot"), r"it trained nothing"),
    Case("an export to a file", export(out_is_a_file), r"out is there already and is a file"),
    Case("an export into a folder with content", export(out_has_content), r"out is there already and not empty"),
    Case(
        "an export below a file", asked(out_is_a_file, "export", RUN_ID, "out/below"), r"out/below cannot be written to"
    ),
    Case(
        "a file for --out",
        asked(lambda place: place.file("file", ""), "run", STUDY, "--out", "file"),
        r"cannot be written to",
    ),
    Case(
        "a file for the study's folder",
        asked(lambda place: (shutil.rmtree(place.folder / STORE), place.file(STORE, "mine")), "run", STUDY),
        r"cannot be written to",
    ),
    Case(
        "a report of a study with other settings",
        asked(nothing, "report", STUDY, "--set", "budget.steps=7"),
        r"none of the \d+ finished runs .* belongs to the study as given",
    ),
    Case(
        "a prompt longer than the context",
        asked(nothing, "generate", RUN_ID, "x" * 5000),
        r"the prompt has \d+ tokens; the base sees 96",
    ),
    Case(
        "a temperature below zero",
        asked(nothing, "generate", RUN_ID, "x", "--temperature", "-1"),
        r"temperature: .*greater than 0",
    ),
    Case(
        "a temperature that is no number",
        asked(nothing, "generate", RUN_ID, "x", "--temperature", "nan"),
        r"temperature: .*",
    ),
    Case(
        "10^30 new tokens",
        asked(nothing, "generate", RUN_ID, "x", "--max-new-tokens", "-1"),
        r"Invalid value for '--max-new-tokens'",
    ),
)
