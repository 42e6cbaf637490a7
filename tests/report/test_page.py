"""The page as a file: nothing from outside, nothing run that is not ours, every text shown as text."""

import base64
import hashlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import pytest
from fakes import EVERY_METHOD, HOSTILE, Fakes, make_classification, make_qa, make_study
from fakes_why import whole_page
from reader import Reader

from tuneoff.analysis.summary import summarise
from tuneoff.errors import StoreError, StudyError
from tuneoff.report import page
from tuneoff.report.charts import figures, picture
from tuneoff.report.points import (
    MAX_POINTS_PER_CURVE,
    learning_points,
    tradeoff_note,
    tradeoff_points,
)
from tuneoff.report.reproduce import study_mapping, study_yaml
from tuneoff.report.write import write_report
from tuneoff.study.loading import load_study
from tuneoff.study.spec import Study

BUNDLE = "window.vegaEmbed = () => {};"
REAL_BUNDLE = page.vega_bundle
MAX_BYTES = 1_500_000
TRAINED = {"differences", "learning", "rates", "parameters", "memory", "time", "disk"}
"""Charts of every study that trains."""


@pytest.fixture(scope="module", autouse=True)
def _small_bundle() -> Iterator[None]:
    """The real one takes seconds to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "vega_bundle", lambda: BUNDLE)
        yield


@pytest.fixture(scope="module")
def whole(_small_bundle: None) -> str:
    return whole_page(Fakes(make_study()))


def render(fakes: Fakes) -> str:
    return page.render_page(fakes.study, summarise(fakes.study, fakes.records, fakes.tests), fakes.curves)


def test_nothing_comes_from_outside(whole: str) -> None:
    found = Reader(whole)
    for tag, attributes in found.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "img"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag
            if name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
                assert value is not None
                assert value.startswith(("#", "data:,")), (tag, name, value)
    assert "@import" not in whole
    assert "url(" not in "".join(found.styles)
    # Names of XML dialects are the only addresses; they are never fetched.
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", whole))
    assert {address.partition("/schema/")[0] for address in addresses} <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
        "https://vega.github.io",
    }


def test_policy_names_each_script_and_style(whole: str) -> None:
    found = Reader(whole)
    policy = next(attrs["content"] for _, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    _, *scripts = found.scripts  # the first is data
    for text in (*scripts, *found.styles):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.count("sha256-") == 3
    names = [tag for tag, attrs in found.tags if tag == "script" or "http-equiv" in attrs]
    assert names[0] == "meta"


def test_hostile_text_is_shown_as_text() -> None:
    fakes = Fakes(make_study(about=HOSTILE), notes=(HOSTILE,))
    for run_id, record in fakes.records.items():
        if record.status == "infeasible":
            fakes.records[run_id] = record.model_copy(update={"reason": HOSTILE})
    text = render(fakes)
    found = Reader(text)
    assert text.count("<script") == 3
    assert "<script>alert('x')</script>" in found.text
    assert "[bold]markup[/bold]" in found.text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "alert" not in "".join(found.scripts[1:])
    assert "<" not in found.scripts[0]
    assert "</script>" in json.dumps(json.loads(found.scripts[0]))


@pytest.mark.parametrize(("share", "says"), [(0.0, "0 of 21 runs done"), (0.5, "11 of 21 runs done")])
def test_partial_studies_have_a_page(share: float, says: str) -> None:
    found = Reader(render(Fakes(make_study(), share=share)))
    assert says in found.text
    assert ("Learning curves" in found.text) == (share > 0)


def test_verdict_comes_first(whole: str) -> None:
    text = Reader(whole).text
    places = [text.index(word) for word in ("full has the lowest", "On the test split", "Thick with points", "sha256")]
    assert places == sorted(places)


def test_every_reference_inside_the_page_is_there(whole: str) -> None:
    found = Reader(whole)
    ids = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    links = {str(attrs["href"])[1:] for tag, attrs in found.tags if tag == "a"}
    named = {str(attrs[key]) for _, attrs in found.tags for key in ("aria-labelledby", "data-copy") if key in attrs}
    assert links | named <= ids
    groups = [attrs["name"] for tag, attrs in found.tags if tag == "input" and "checked" in attrs]
    assert len(groups) == len(set(groups)) == 12


def test_long_curves_are_thinned() -> None:
    fakes = Fakes(make_study())
    points = learning_points(summarise(fakes.study, fakes.records, fakes.tests), fakes.curves)
    train = [point for point in points if point["arm"] == "full" and point["kind"] == "train"]
    assert len(train) == 267 <= MAX_POINTS_PER_CURVE
    assert train[-1]["step"] == 800
    validation = [point for point in points if point["arm"] == "full" and point["kind"] == "validation"]
    assert [point["step"] for point in validation] == list(range(0, 801, 80))
    assert validation[-1]["low"] <= validation[-1]["loss"] <= validation[-1]["high"]


def test_lines_that_are_not_numbers_are_left_out() -> None:
    fakes = Fakes(make_study())
    for lines in fakes.curves.values():
        lines.append({"kind": "train", "step": 801, "target_tokens": 9, "loss_nats": float("nan")})
        lines.append({"kind": "validation", "step": 801, "target_tokens": 9, "loss_nats": None})
    points = learning_points(summarise(fakes.study, fakes.records, fakes.tests), fakes.curves)
    assert max(point.get("step", 0) for point in points) == 800


def test_study_can_be_run_again_from_the_page(tmp_path: Path) -> None:
    auto = {"auto": {"method": "lora", "tune": {"lr": "auto"}}}
    auto["grid"] = {"method": "lora", "tune": {"lr": [2e-4, 6e-4], "extend": True}}
    both = study_mapping(make_study())["arms"] | auto
    study = make_study(about="a: b # c\n'd'", seeds=[5], micro_batch=4, arms=both, tuning={"extend": 2})
    file = tmp_path / "again.yaml"
    file.write_text(study_yaml(study), encoding="utf-8")
    again = load_study(file)
    assert study_mapping(again) == study_mapping(study)
    assert [(arm.method, arm.lr, arm.assumed, arm.is_extended) for arm in again.arms] == [
        (arm.method, arm.lr, arm.assumed, arm.is_extended) for arm in study.arms
    ]
    assert (again.arm("auto").is_extended, again.tuning.extend) == (True, 2)


def test_files_are_written_whole(tmp_path: Path) -> None:
    fakes = Fakes(make_study())
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    folder = tmp_path / "runs" / "study"
    for _ in range(2):
        paths = write_report(folder, fakes.study, summary, fakes.curves, fakes.records, fakes.tests)
    assert [path.name for path in paths] == ["report.html", "report.md", "report.csv", "report.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    assert json.loads(paths[3].read_text("utf-8"))["summary"]["ranking"][0] == "full"


def test_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fakes = Fakes(make_study(), share=0.0)
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    with pytest.raises(StoreError, match="the report cannot be written there"):
        write_report(tmp_path / "file" / "below", fakes.study, summary, {}, {}, {})


@pytest.mark.parametrize(
    ("study", "names"),
    [
        (make_study(), TRAINED),
        (make_qa(), TRAINED | {"tradeoff"}),
        (make_classification(), TRAINED),
    ],
    ids=["instruction", "qa", "classification"],
)
def test_figures_are_files(study: Study, names: set[str], tmp_path: Path) -> None:
    fakes = Fakes(study, share=0.5)
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    forms = ("png", "svg") if "tradeoff" in names else ("svg",)
    paths = write_report(tmp_path, study, summary, fakes.curves, fakes.records, fakes.tests, forms)
    drawn = [path for path in paths if path.parent == tmp_path / "figures"]
    assert {path.name for path in drawn} == {f"{name}.{form}" for name in names for form in forms}
    for path in drawn:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            width, height = struct.unpack(">II", content[16:24])
            assert width > 1000
            assert height > (400 if path.stem == "differences" else 1000)  # a line for each arm alone
        else:
            svg = ElementTree.fromstring(content)
            assert svg.tag == "{http://www.w3.org/2000/svg}svg"
            texts = " ".join("".join(svg.itertext()).split())
            assert "lora-rank2" in texts  # the legend
            assert "NaN" not in content.decode()


def test_axes_say_what_they_count() -> None:
    fakes = Fakes(make_classification(), share=0.5)
    charts = figures(summarise(fakes.study, fakes.records, fakes.tests), fakes.curves)
    learning, time = picture(charts["learning"], "svg").decode(), picture(charts["time"], "svg").decode()
    assert "nats per example" in learning
    assert "nats per token" not in learning
    assert "test accuracy, points" in time


def test_figures_of_other_kinds_are_refused(tmp_path: Path) -> None:
    fakes = Fakes(make_study(), share=0.0)
    summary = summarise(fakes.study, {}, {})
    with pytest.raises(StudyError, match=r"figures: found 'pngg'; allowed: pdf, png, svg\. Did you mean png\?"):
        write_report(tmp_path, fakes.study, summary, {}, {}, {}, ("pngg",))
    assert not list(tmp_path.iterdir())
    assert picture(_small_chart(), "pdf").startswith(b"%PDF")


def _small_chart() -> alt.LayerChart:
    fakes = Fakes(make_study(), share=0.5)
    return figures(summarise(fakes.study, fakes.records, fakes.tests), {})["rates"]


def test_strategies_are_compared_at_one_n() -> None:
    """Greedy writes one text, whose pairs are nearly all distinct; that is not diversity."""
    fakes = Fakes(make_qa(decoding=["greedy", {"top_p": 0.9, "samples": 5}, {"top_k": 9}]))
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    points = {point["decoding"]: point for point in tradeoff_points(summary) if point["arm"] == "full"}
    greedy, nucleus = summary.arm("full").generated[:2]
    assert set(points) == {"greedy", "top-p-0.9"}
    assert points["greedy"]["diversity"] == pytest.approx(greedy.distinct_2.value / 5, rel=1e-4)
    assert points["top-p-0.9"]["diversity"] == pytest.approx(nucleus.distinct_2.value, rel=1e-4)
    assert tradeoff_note(summary) == (
        "Diversity over n = 5 texts for each prompt; greedy and beam search write the same text 5 times. "
        "Not drawn, since fewer texts were: top-k-9."
    )


@pytest.mark.parametrize("study", [make_qa(arms=EVERY_METHOD), make_classification(arms=EVERY_METHOD)])
def test_page_of_every_method(study: Study) -> None:
    fakes = Fakes(study, lost=("loha",))
    text = render(fakes)
    found = Reader(text)
    assert len(text.encode()) < MAX_BYTES
    said = found.text
    for method in ("QLoRA nf4 rank 8", "bottleneck adapter, 32 wide, after attention and MLP, relu, dropout 0.1"):
        assert method in said
    for method in ("prompt tuning, 20 virtual tokens", "prefix tuning, 10 virtual tokens, projected through 128"):
        assert method in said
    assert "diverged: loss is not a number" in said  # of the arm that gave nothing
    is_qa = study.task.kind == "qa"
    assert ("Decoding: score against diversity" in said) == is_qa
    assert ("perplexity" in said) != (study.task.kind == "classification")
    best = "F1" if is_qa else "accuracy"
    assert f"full has the highest test {best}" in said
    assert f"Test {best} with its interval over seeds. Higher and further left is better." in said
    assert ("nats per example" in said) != is_qa


def test_hostile_metrics_are_shown_as_text() -> None:
    name = "regex:<script>alert(1)</script>|"
    task = {"kind": "qa", "data": "squad", "max_length": 384, "metrics": [name, "f1"]}
    text = render(Fakes(make_qa(task=task), share=0.5))
    assert text.count("<script") == 3
    assert "<script>alert(1)</script>" in Reader(text).text


def test_real_bundle_has_what_the_page_needs() -> None:
    bundle = REAL_BUNDLE()
    assert "window.vegaEmbed" in bundle
    assert ".ast" in bundle or "ast:" in bundle
    assert len(bundle.encode()) < MAX_BYTES - 400_000


def test_report_does_without_torch() -> None:
    code = (
        "import sys, tuneoff.report.write, tuneoff.report.status; print(*{'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
