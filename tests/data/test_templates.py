"""How conversations are written, and where the parts of a reply begin and end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.helpers import chat_like, gpt2_like

from tuneoff.data.conversations import Conversation, Turn
from tuneoff.data.encoding import encode_prompt
from tuneoff.data.rendering import render_prompt
from tuneoff.data.templates import Segment, make_template
from tuneoff.errors import DataError, StudyError
from tuneoff.study.spec import TaskSpec


def _conversation(*turns: Turn) -> Conversation:
    return Conversation(turns, ("item",), "rows.jsonl", 7)


def _reply(text: str, *, is_target: bool = True) -> Turn:
    return Turn("assistant", text, is_target=is_target)


def test_plain() -> None:
    template = make_template(None, gpt2_like())
    assert template.segments(_conversation(Turn("user", "Do {context}."), _reply("Done."))) == [
        Segment("### Instruction:\nDo {context}.\n\n### Response:\n"),
        Segment("Done.", is_target=True, ends=True),
    ]
    with_context = template.segments(_conversation(Turn("user", "Do.", "{instruction}"), _reply("Done.")))
    assert with_context[0].text == "### Instruction:\nDo.\n\n### Input:\n{instruction}\n\n### Response:\n"


def test_turns_that_follow_and_system() -> None:
    turns = (
        Turn("system", "Be brief."),
        Turn("user", "A"),
        _reply("B", is_target=False),
        Turn("user", "C"),
        _reply("D"),
    )
    segments = make_template(None, gpt2_like()).segments(_conversation(*turns))
    assert [(segment.text, segment.is_target, segment.ends) for segment in segments] == [
        ("Be brief.\n\n### Instruction:\nA\n\n### Response:\n", False, False),
        ("B", False, True),
        ("\n\n### Instruction:\nC\n\n### Response:\n", False, False),
        ("D", True, True),
    ]


def test_an_empty_system_text_leaves_nothing() -> None:
    segments = make_template(None, gpt2_like()).segments(
        _conversation(Turn("system", ""), Turn("user", "A"), _reply("B"))
    )
    assert segments[0].text == "### Instruction:\nA\n\n### Response:\n"


@given(st.text(), st.text(min_size=1))
def test_a_custom_template_replaces_and_does_not_format(instruction: str, context: str) -> None:
    template = make_template('{"q": {instruction}, "c": {context}} {0!r:>3}', gpt2_like())
    segments = template.segments(_conversation(Turn("user", instruction, context), _reply("B")))
    assert segments[0].text == f'{{"q": {instruction}, "c": {context}}} {{0!r:>3}}'


def test_a_context_without_a_place() -> None:
    template = make_template("Q: {instruction}\nA: ", gpt2_like())
    with pytest.raises(DataError, match=r"^rows.jsonl, line 7: the row has a context, but task.template has no place"):
        template.segments(_conversation(Turn("user", "A", "C"), _reply("B")))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{instruct}", "unknown placeholder {instruct}; allowed: {instruction}, {context}. Did you mean instruction?"),
        ("{instruction} {}", "unknown placeholder {}"),
        ("Q:", "expected the placeholder {instruction}, found 'Q:'. For the tokenizer's own template write: chat."),
        ("chat", "the model's tokenizer has no chat template"),
    ],
)
def test_bad_templates(template: str, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        make_template(template, gpt2_like())
    assert message in str(caught.value)


def test_chat() -> None:
    turns = (
        Turn("system", "S"),
        Turn("user", "A", "ctx"),
        _reply(" B "),
        Turn("user", "C"),
        _reply("D", is_target=False),
    )
    segments = make_template("chat", chat_like()).segments(_conversation(*turns))
    assert segments == [
        Segment("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA\n\nctx<|im_end|>\n<|im_start|>assistant\n"),
        Segment("B<|im_end|>\n", is_target=True, num_bytes=1),
        Segment("<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n"),
        Segment("D<|im_end|>\n", num_bytes=1),
    ]


def test_a_chat_template_that_rewrites_the_past() -> None:
    tokenizer = chat_like()
    tokenizer.chat_template = "{{ messages | length }}: {% for m in messages %}{{ m['content'] }};{% endfor %}"
    with pytest.raises(DataError, match="writes earlier turns anew"):
        make_template("chat", tokenizer).segments(_conversation(Turn("user", "A"), _reply("B")))


def test_a_chat_template_that_refuses() -> None:
    tokenizer = chat_like()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match=r"line 7: .*refuses this conversation: System role not supported"):
        make_template("chat", tokenizer).segments(_conversation(Turn("user", "A"), _reply("B")))


def test_prompts_for_generation() -> None:
    task = TaskSpec(kind="instruction", data="x")
    tokenizer = chat_like()
    assert render_prompt(task, tokenizer, "A", "C") == "### Instruction:\nA\n\n### Input:\nC\n\n### Response:\n"
    assert render_prompt(TaskSpec(kind="text", data="x"), tokenizer, "A") == "A"
    prompt = render_prompt(task.model_copy(update={"template": "chat"}), tokenizer, "A")
    assert prompt == "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n"
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert encode_prompt(tokenizer, prompt, "chat").count(start) == 2
    assert start not in encode_prompt(tokenizer, prompt)
