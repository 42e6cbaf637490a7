"""One prompt as the task's template writes it, for trying a trained run on text of one's own."""

from typing import TYPE_CHECKING

from tuneoff.data.classification import make_field_template
from tuneoff.data.conversations import Turn
from tuneoff.data.qa import QuestionTemplate
from tuneoff.data.templates import make_template
from tuneoff.study.spec import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(task: TaskSpec, tokenizer: "PreTrainedTokenizerBase", instruction: str, context: str = "") -> str:
    """Return what is asked as the task's template writes it, as it is written for training.

    Args:
        task: kind and template.
        tokenizer: the tokenizer, for `template: chat`.
        instruction: the instruction; the question (qa); the text (text, classification).
        context: what the instruction or the question is about.
    """
    if task.kind == "text":
        return instruction
    if task.kind == "classification":
        return make_field_template(task.template).write({"text": instruction.strip()}).text
    if task.kind == "qa":
        return QuestionTemplate(task.template, tokenizer).prompt(instruction.strip(), context.strip()).text
    return make_template(task.template, tokenizer).prompt([Turn("user", instruction, context)])
