"""Questions: every form of the data, what a sequence and a prompt hold, what is cut, and what bad rows get."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.helpers import chat_like, gpt2_like, llama_like, run_prepare, target_texts, write_jsonl
from tokenizers import Regex, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from tuneoff.data.encoding import Encoder, encode_prompt
from tuneoff.data.formats import Row
from tuneoff.data.qa import Question, QuestionCuts, QuestionFitter, QuestionTemplate, to_questions
from tuneoff.data.rendering import render_prompt
from tuneoff.data.tokens import PreparedData, PromptBuilder, Prompts, TokenSplit
from tuneoff.errors import DataError, StudyError
from tuneoff.study.spec import ColumnsSpec, TaskSpec

TOKENIZERS = [gpt2_like, llama_like]


def _asked(number: int, name: str = "") -> dict[str, Any]:
    text = f"It is {number}!"
    return {"id": f"q{name}{number}", "question": f"What {number}?", "answers": [{"text": text, "answer_start": 4}]}


def _articles(num: int, name: str = "Article") -> dict[str, Any]:
    """Two paragraphs of two questions for each article."""
    data = []
    for article in range(num):
        paragraphs = []
        for paragraph in range(2):
            numbers = [4 * article + 2 * paragraph + place for place in range(2)]
            context = "Say " + " ".join(f"It is {number}!" for number in numbers)
            paragraphs.append({"context": context, "qas": [_asked(number, name) for number in numbers]})
        data.append({"title": f"{name} {article}", "paragraphs": paragraphs})
    return {"version": "1.1", "data": data}


def _write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def _prepare(folder: Path, tokenizer: PreTrainedTokenizerFast, **task: Any) -> PreparedData:
    return run_prepare(folder, tokenizer, kind="qa", **task)


def _prompts(data: PreparedData) -> Prompts:
    assert data.prompts is not None
    return data.prompts


@pytest.mark.parametrize("make", TOKENIZERS)
def test_squad_json(tmp_path: Path, make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    _write(tmp_path / "train.json", _articles(10))
    _write(tmp_path / "dev.json", _articles(2, "Other"))
    data = _prepare(tmp_path, tokenizer, data="train.json", splits={"test": "dev.json"})
    assert [len(split) for split in data.splits().values()] == [36, 4, 8]  # validation is one article of train
    assert data.test.item_names == ("Other 0", "Other 1")
    assert data.test.items.tolist() == [0] * 4 + [1] * 4
    space = "" if make is llama_like else " "  # Llama's tokenizer puts one before the answer, and drops it again
    assert target_texts(data.test, tokenizer)[3] == f"{space}It is 3!{tokenizer.eos_token}"
    assert set(data.test.target_bytes.tolist()) == {len("It is 0!")}
    prompts = _prompts(data)
    assert prompts.ids == tuple(f"qOther{number}" for number in range(8))
    assert prompts.references == tuple((f"It is {number}!",) for number in range(8))
    assert prompts.items.tolist() == data.test.items.tolist()
    for number in range(8):
        ids, targets = data.test.sequence(number)
        assert prompts.prompt(number).tolist() == ids[~targets].tolist()
    text = "Context: Say It is 0! It is 1!\nQuestion: What 1?\nAnswer:"
    assert encode_prompt(tokenizer, text) == prompts.prompt(1).tolist()
    task = TaskSpec(kind="qa", data="x")
    assert render_prompt(task, tokenizer, " What 1? ", "Say It is 0! It is 1!\n") == text
    assert len(data.samples) == 1  # of as many articles
    assert data.samples[0][1].startswith("It is ")
    assert any(note.startswith("Each answer ends with") for note in data.notes)


def test_prompt_and_answer_have_the_tokens_of_running_text() -> None:
    """What a byte-level tokenizer makes of the two pieces is what it makes of the whole."""
    tokenizer = gpt2_like()
    split, prompts, _ = _build(tokenizer, _question(context="The old captain.", answers=("the ship",)), 90)
    whole = tokenizer("Context: The old captain.\nQuestion: Who?\nAnswer: the ship<|endoftext|>")["input_ids"]
    assert split.input_ids.tolist() == whole
    assert whole[: len(prompts.input_ids)] == prompts.input_ids.tolist()


@pytest.mark.parametrize(
    ("template", "target"),
    [
        ("{context} {question}\n", "red"),
        ("{context} {question} A:", " red"),
        ("{context} {question} A: ", "red"),
        ("{question} {context}\n{question}\n", "red"),
    ],
)
def test_the_space_before_the_answer(template: str, target: str) -> None:
    tokenizer = gpt2_like()
    split, _, _ = _build(tokenizer, _question(), 90, template=template)
    assert target_texts(split, tokenizer) == [target + "<|endoftext|>"]
    assert split.target_bytes.tolist() == [3]


def test_a_space_of_the_tokenizer_is_not_written_twice() -> None:
    """Llama 2's pieces carry the space before a word: no second one is learnt, nor asked for."""
    tokenizer = llama_like()
    split, _, _ = _build(tokenizer, _question(answers=("the",)), 90)
    ids, targets = split.sequence(0)
    assert tokenizer.convert_ids_to_tokens(ids[targets]) == ["▁t", "he", "</s>"]


def test_a_tokenizer_without_the_letter() -> None:
    """A model folder may hold a tokenizer that knows next to no words: bad rows, not a crash."""
    bare = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
    bare.normalizer = normalizers.Replace(Regex("[^<s>]"), "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<s>")
    with pytest.raises(DataError, match="line 7: expected an answer that carries loss, found one without a token"):
        _build(tokenizer, _question(answers=("x",)), 90)


def test_hub_rows_in_every_format(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"q{number}",
            "title": f"T{number // 3}",
            "context": "Öl, 油 and  🙂.",
            "question": f"What {number}?",
            "answers": {"text": ["油", "🙂", "油"], "answer_start": [4, 11, 4]},
        }
        for number in range(30)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    _write(tmp_path / "rows.json", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    flat = [row | {"answers": ["油", "🙂"]} for row in rows]
    write_jsonl(tmp_path / "flat.jsonl", flat)
    names = ("rows.jsonl", "rows.json", "rows.parquet", "flat.jsonl")
    found = [_prepare(tmp_path, gpt2_like(), data=name) for name in names]
    assert len({data.sha256 for data in found}) == 1
    assert set(_prompts(found[0]).references) == {("油", "🙂")}
    assert [len(split.item_names) for split in found[0].splits().values()] == [8, 1, 1]
    ids = list(_prompts(found[0]).ids)
    assert [int(name[1:]) // 3 for name in ids] == [int(ids[0][1:]) // 3] * 3  # one article


def test_csv_with_columns_of_its_own(tmp_path: Path) -> None:
    lines = ["passage;x,ask,reply", *(f"c{number},q{number},a{number}" for number in range(10))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    columns = {"context": "passage;x", "question": "ask", "answers": "reply"}
    data = _prepare(tmp_path, gpt2_like(), data="rows.csv", columns=columns)
    (name,) = _prompts(data).ids
    number = int(name.removeprefix("rows.csv:")) - 2
    assert _prompts(data).references == ((f"a{number}",),)
    assert data.test.item_names == (name,)  # without a title the context is the item


def test_the_limit_counts_questions(tmp_path: Path) -> None:
    _write(tmp_path / "train.json", _articles(9))
    data = _prepare(tmp_path, gpt2_like(), data="train.json", limit=14, splits={"validation": 0.25, "test": 0.25})
    assert sum(len(split) for split in data.splits().values()) == 14


def test_the_limit_takes_questions_in_turn_from_every_article(tmp_path: Path) -> None:
    _write(tmp_path / "train.json", _articles(9))
    data = _prepare(tmp_path, gpt2_like(), data="train.json", limit=9, splits={"validation": 0.25, "test": 0.25})
    names = [name for split in data.splits().values() for name in split.item_names]
    assert len(set(names)) == 9  # one question of each article: splits are cut by article, and all have their share
    assert [len(split) for split in data.splits().values()] == [5, 2, 2]


def test_ids_given_twice_are_told_apart(tmp_path: Path) -> None:
    article = _articles(1)["data"][0]
    article["paragraphs"][1]["qas"][0]["id"] = "qArticle0"
    _write(tmp_path / "dev.json", {"data": [article]})
    _write(tmp_path / "train.json", _articles(5, "Other"))
    data = _prepare(tmp_path, gpt2_like(), data="train.json", splits={"test": "dev.json"})
    assert _prompts(data).ids == ("qArticle0", "qArticle1", "qArticle0 #2", "qArticle3")
    assert any("ids stand for several questions" in note for note in data.notes)


def test_unanswerable_questions_are_left_out_and_said(tmp_path: Path) -> None:
    articles = _articles(10)
    for article in articles["data"]:
        article["paragraphs"][0]["qas"][0] |= {"answers": [], "is_impossible": True}
    _write(tmp_path / "train.json", articles)
    _write(tmp_path / "dev.json", {"data": [_articles(11)["data"][10], articles["data"][0] | {"title": "X"}]})
    data = _prepare(tmp_path, gpt2_like(), data="train.json", splits={"test": "dev.json"})
    said = "of {} questions have no answer (SQuAD 2.0's unanswerable ones) and were left out."
    assert f"train: 10 {said.format(40)}" in data.notes
    assert data.cautions == (f"test: 1 {said.format(8)}",)
    assert len(_prompts(data)) == 7
    write_jsonl(tmp_path / "none.jsonl", [{"context": "c", "question": "q", "answers": []}])
    with pytest.raises(DataError, match=r"^none.jsonl, column answers: none of the 1 questions has an answer"):
        _prepare(tmp_path, gpt2_like(), data="none.jsonl")


def _error(*values: dict[str, Any], **columns: str) -> DataError:
    rows = [Row(value, "rows.jsonl", line) for line, value in enumerate(values, start=1)]
    with pytest.raises(DataError) as caught:
        to_questions(rows, ColumnsSpec(**columns))
    return caught.value


GOOD = {"context": "c", "question": "q", "answers": ["a"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": None}, "column answers: expected a text, a list of texts, or {text: [...]}, found null"),
        ({"answers": 3}, "column answers: expected a text, a list of texts, or {text: [...]}, found 3 (int)"),
        ({"answers": {"start": 1}}, "column answers: expected a text"),
        ({"answers": ["a", ""]}, "column answers[2]: expected text, found ''"),
        ({"answers": [{"answer_start": 3}]}, "column answers[1]: expected text, found null"),
        ({"answers": ""}, "column answers: expected text, found ''"),
        ({"answers": {"text": ["\ud800"]}}, "column answers[1]: expected text, found half of a surrogate pair"),
        ({"context": " \n"}, "column context: expected text, found ' \\n'"),
        ({"question": None}, "column question: expected text, found null"),
    ],
)
def test_bad_rows(change: dict[str, Any], message: str) -> None:
    assert str(_error(GOOD, GOOD | change)).startswith(f"rows.jsonl, line 2, {message}")


def test_unknown_columns() -> None:
    text = str(_error({"context": "c", "questions": "q", "answers": ["a"]}))
    assert "no column for the question (known names: question)" in text
    assert "Name it under task.columns.question. Did you mean questions?" in text
    assert "kind: qa takes SQuAD's JSON" in text
    assert "no column 'asks'" in str(_error(GOOD, question="asks"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[1].pop("paragraphs"), ", column paragraphs: article 2 ('Article 1'): expected a list, found null"),
        (
            lambda d: d.append(3),
            ", column paragraphs: article 3: expected an object with a list of paragraphs, found 3",
        ),
        (
            lambda d: d.insert(1, [d[0]]),
            ", column paragraphs: article 2: expected an object with a list of paragraphs, found [",
        ),
        (
            lambda d: d[0]["paragraphs"].insert(1, [{}]),
            ", column qas: article 1 ('Article 0'), paragraph 2: expected an object with a list of qas, found [",
        ),
        (
            lambda d: d[0]["paragraphs"][1].pop("qas"),
            ", column qas: article 1 ('Article 0'), paragraph 2: expected a list, found null",
        ),
        (
            lambda d: d[0]["paragraphs"][1]["qas"].insert(0, "What?"),
            ": article 1 ('Article 0'), paragraph 2, question 1: expected an object, found 'What?'",
        ),
        (
            lambda d: d[1]["paragraphs"][0].pop("context"),
            ", column context: article 2 ('Article 1'), paragraph 1, question 1: expected text, found null",
        ),
        (
            lambda d: d[1]["paragraphs"][1]["qas"][1]["answers"][0].update(text=""),
            ", column answers[1]: article 2 ('Article 1'), paragraph 2, question 2: expected text, found ''",
        ),
    ],
)
def test_bad_squad_files(tmp_path: Path, change: Callable[[list[Any]], object], message: str) -> None:
    articles = _articles(2)
    change(articles["data"])
    _write(tmp_path / "train.json", articles)
    with pytest.raises(DataError) as caught:
        _prepare(tmp_path, gpt2_like(), data="train.json")
    assert str(caught.value).startswith(f"train.json{message}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{context}", "expected the placeholder {question}"),
        ("{question}", "expected the placeholder {context}"),
        ("{context} {context} {question}", "expected the placeholder {context} once, found it 2x"),
        ("{context} {quest}", "unknown placeholder {quest}; allowed: {context}, {question}. Did you mean question?"),
        ("chat", "the model's tokenizer has no chat template"),
    ],
)
def test_bad_templates(template: str, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        QuestionTemplate(template, gpt2_like())
    assert message in str(caught.value)


def test_braces_in_the_data_are_text() -> None:
    prompt = QuestionTemplate(None, gpt2_like()).prompt("{context}?", "{question} {0}")
    assert prompt.text == "Context: {question} {0}\nQuestion: {context}?\nAnswer:"
    assert prompt.text[prompt.start : prompt.end] == "{question} {0}"


def test_chat() -> None:
    tokenizer = chat_like()
    split, prompts, _ = _build(tokenizer, _question(), 90, template="chat")
    start = "<|im_start|>user\nContext: abcdef\nQuestion: Who?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(prompts.input_ids) == start
    assert tokenizer.decode(split.input_ids) == start + "red<|im_end|>\n"
    assert split.target_bytes.tolist() == [3]
    _, prompts, cuts = _build(tokenizer, _question(context="a" * 200), 90, template="chat")
    assert tokenizer.decode(prompts.input_ids).endswith("a\nQuestion: Who?<|im_end|>\n<|im_start|>assistant\n")
    assert len(prompts.input_ids) == 90 - 22
    assert cuts.num_long == 1
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(StudyError, match="changes what the user says"):
        QuestionTemplate("chat", tokenizer).prompt("q", "c")


def _question(context: str = "abcdef", question: str = "Who?", answers: tuple[str, ...] = ("red",)) -> Question:
    return Question(context, question, answers, "q1", ("t",), "t", "rows.jsonl", 7, "")


def _build(
    tokenizer: PreTrainedTokenizerFast,
    question: Question,
    max_length: int,
    truncation: str = "middle",
    template: str | None = None,
) -> tuple[TokenSplit, Prompts, QuestionCuts]:
    builder = PromptBuilder()
    encoder = Encoder(tokenizer, parses_special=template == "chat")
    fitter = QuestionFitter(encoder, QuestionTemplate(template, tokenizer), max_length, truncation)
    split, cuts = fitter.build([question], builder)
    return split, builder.build(), cuts


@pytest.mark.parametrize(
    ("context", "answers", "max_length", "truncation", "prompt", "cut"),
    [
        # room for the prompt is three quarters of max_length; of single letters each is a token
        ("abcdef", ("c",), 12, "middle", "abcdef-Q-", (0, 0, 0)),
        ("abcdef", ("c",), 11, "middle", "abcdef-Q-", (0, 0, 0)),
        ("abcdef", ("f",), 10, "middle", "abcef-Q-", (1, 1, 0)),
        ("abcdef", ("d",), 10, "middle", "abcef-Q-", (1, 1, 1)),
        ("abcdef", ("d", "ef"), 10, "middle", "abcef-Q-", (1, 1, 0)),
        ("abcdef", ("cef",), 10, "middle", "abcef-Q-", (1, 1, 0)),  # it was not there before the cut
        ("abcdef", ("cd",), 9, "middle", "abef-Q-", (1, 2, 1)),
        ("abcdef", ("ab",), 8, "end", "abc-Q-", (1, 3, 0)),
        ("abcdef", ("cd",), 8, "end", "abc-Q-", (1, 3, 1)),
        ("abcdef", ("a",), 5, "middle", "a-Q-", (1, 5, 0)),
        ("aäöüf", ("f",), 10, "middle", "aäf-Q-", (1, 4, 0)),  # two tokens each; 8 of 12 fit
        ("äöü", ("ü",), 7, "middle", "ä-Q-", (1, 4, 1)),  # a character is cut whole
    ],
)
def test_the_context_is_cut(
    context: str, answers: tuple[str, ...], max_length: int, truncation: str, prompt: str, cut: tuple[int, int, int]
) -> None:
    tokenizer = gpt2_like()
    question = _question(context, "Q", answers)
    split, prompts, cuts = _build(tokenizer, question, max_length, truncation, "{context}\n{question}\n")
    assert tokenizer.decode(prompts.input_ids).replace("\n", "-") == prompt
    ids, targets = split.sequence(0)
    assert ids[~targets].tolist() == prompts.input_ids.tolist()
    assert len(ids) <= max_length
    assert (cuts.num_long, cuts.num_context_tokens, cuts.num_lost) == cut


def test_a_long_answer_loses_its_end() -> None:
    tokenizer = gpt2_like()
    split, _, cuts = _build(tokenizer, _question("ab", "Q", ("xäyzw",)), 8, template="{context}\n{question}\n")
    assert tokenizer.decode(split.input_ids[split.targets]) == "xä"
    assert split.target_bytes.tolist() == [3]
    assert (cuts.num_long, cuts.num_long_answers, cuts.num_target_tokens) == (0, 1, 4)
    (note,) = cuts.notes("test", 6, "middle")
    assert note == "test: 1 of 1 answers did not fit behind their prompt; 4 target tokens were cut from their ends."
    spaced, _, _ = _build(tokenizer, _question("ab", "Q", ("xyzw",)), 8, template="{context}\n{question}")
    assert tokenizer.decode(spaced.input_ids[spaced.targets]).startswith(" xy")
    assert spaced.target_bytes.tolist() == [3]  # the space before the answer is none of its bytes


@pytest.mark.parametrize(
    ("max_length", "truncation", "message"),
    [
        (
            8,
            "error",
            "the prompt has 9 tokens, 6 fit (task.max_length 8, less room for the answer), and",
        ),
        (12, "error", "the question with its answer has 13 tokens, 12 fit (task.max_length 12), and"),
        (
            4,
            "middle",
            "expected a prompt of at most 3 tokens (task.max_length less room for the answer), found",
        ),
    ],
)
def test_what_does_not_fit_is_refused(max_length: int, truncation: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        _build(gpt2_like(), _question("abcdef", "Q"), max_length, truncation, "{context}\n{question}\n")
    assert str(caught.value).startswith(f"rows.jsonl, line 7: {message}")


def test_what_was_cut_is_told(tmp_path: Path) -> None:
    articles = _articles(10)
    for article in articles["data"]:
        article["paragraphs"][0]["context"] += " and" * 300
    _write(tmp_path / "train.json", articles)
    data = _prepare(tmp_path, gpt2_like(), data="train.json", max_length=200)
    notes = [note for note in data.notes if "prompts were longer than 168 tokens" in note]
    assert [note.split(" prompts")[0] for note in notes] == ["train: 16 of 32", "validation: 2 of 4", "test: 2 of 4"]
    assert data.cautions == (notes[2],)
    assert "from the middle of their contexts, and 0 of them no longer hold any of their answers." in notes[2]
    assert "A prompt has at most 168 of 200 tokens; the rest is room for its answer." in data.notes
    assert _prompts(data).offsets[2] == 2 * 168


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("truncation", ["middle", "end"])
@settings(max_examples=40)
@given(
    context=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).map(lambda t: f"x{t.strip()}x"),
    answers=st.lists(st.text("abäö油 ", min_size=1, max_size=9).map(lambda t: f"y{t}y"), min_size=1, max_size=3),
    max_length=st.integers(40, 120),
)
def test_any_question_fits(
    make: Callable[[], PreTrainedTokenizerFast], truncation: str, context: str, answers: list[str], max_length: int
) -> None:
    """Question and cue stay whole, the prompt's length does not depend on the answer, and no piece is invented."""
    tokenizer = make()
    question = _question(context, "q", tuple(dict.fromkeys(answers)))
    template = "{context}\nq {question} r\n"
    split, prompts, cuts = _build(tokenizer, question, max_length, truncation, template)
    ids, targets = split.sequence(0)
    room = max_length - min(32, max_length // 4)
    assert len(prompts.input_ids) <= room
    assert len(ids) <= max_length
    assert targets.any()
    assert prompts.input_ids.tolist() == ids[~targets].tolist()
    assert prompts.references == (tuple(dict.fromkeys(answers)),)
    other = _build(tokenizer, _question(context, "q", ("z",)), max_length, truncation, template)[1]
    assert np.array_equal(other.input_ids, prompts.input_ids)
    text = tokenizer.decode(prompts.input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text.endswith("\nq q r\n")
    whole = encode_prompt(tokenizer, f"{context}\nq q r\n")
    assert len(prompts.input_ids) + cuts.num_context_tokens == len(whole)
    if not cuts.num_long:
        assert prompts.input_ids.tolist() == whole
    assert "\ufffd" not in text or "\ufffd" in context  # no character was split
