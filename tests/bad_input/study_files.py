"""Study files that cannot be used, and values of the command line."""

from collections.abc import Callable, Sequence

from tests.bad_input.case import LORA, RUN, STUDY, Case, Place

BOMB = "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9 if below else ['lol'] * 9)}]\n"
    for below, name in zip(["", *"abcdefgh"], "abcdefghi", strict=True)
)
"""Billion laughs: 400 bytes that stand for gigabytes."""
HEAD = "name: bad\nmodel: base\ntask: {kind: instruction, data: rows.jsonl, max_length: 48}\nbudget: {steps: 6}\n"
ARMS = "arms: {lora: {method: lora, rank: 2, lr: 1e-3}}\n"


def text(content: str | bytes) -> Callable[[Place], Sequence[str]]:
    def build(place: Place) -> Sequence[str]:
        place.file(STUDY, content)
        return RUN

    return build


def with_lora(**changes: object) -> Callable[[Place], Sequence[str]]:
    return lambda place: place.study(arms={"lora": LORA["lora"] | changes})


def arm(**own: object) -> Callable[[Place], Sequence[str]]:
    return lambda place: place.study(arms={"own": own})


def study(**changes: object) -> Callable[[Place], Sequence[str]]:
    return lambda place: place.study(**changes)


def task(**changes: object) -> Callable[[Place], Sequence[str]]:
    return lambda place: place.task(**changes)


def set_value(value: str) -> Callable[[Place], Sequence[str]]:
    return lambda place: (*place.study(), "--set", value)


def deep(place: Place) -> Sequence[str]:
    place.file(STUDY, HEAD + ARMS + "about: " + "[" * 2000 + "]" * 2000)
    return RUN


def a_folder(place: Place) -> Sequence[str]:
    (place.folder / STUDY).mkdir()
    return RUN


STUDIES = (
    Case("an empty study file", text(""), r"study\.yaml: .*mapping"),
    Case("a study file of comments alone", text("# nothing\n"), r"study\.yaml: .*mapping"),
    Case("a list for a study", text("- a\n- b\n"), r"study\.yaml: expected a mapping .*list"),
    Case(
        "a bracket that is not closed", text(HEAD + "arms: {lora: [\n"), r"study\.yaml, line \d+, column \d+: not valid"
    ),
    Case("a tab for an indent", text(HEAD + "arms:\n\tlora: {method: lora}\n"), r"line 6, column 1: not valid YAML"),
    Case(
        "a quotation mark that is not closed",
        text(HEAD + 'about: "no end\n' + ARMS),
        r"line \d+, column \d+: not valid",
    ),
    Case(
        "a key given twice",
        text(HEAD + ARMS + "seeds: [0]\nseeds: [1]\n"),
        r"line \d+, column 1: .*'seeds' is given twice",
    ),
    Case("a list for a key", text(HEAD + ARMS + "? [a, b]\n: 1\n"), r"study\.yaml"),
    Case(
        "an alias without its anchor", text(HEAD + "arms: *nowhere\n"), r"line 5, column 7: not valid YAML: .*nowhere"
    ),
    Case(
        "an alias that holds itself",
        text(HEAD + ARMS + "seeds: &a [*a]\n"),
        r"line 6, column 8: .*an alias stands for what it is in",
    ),
    Case(
        "a study that holds itself", text("&a\n" + HEAD + ARMS + "declare: *a\n"), r"an alias stands for what it is in"
    ),
    Case(
        "billion laughs for a text",
        text(BOMB + HEAD + "about: *i\n" + ARMS),
        r"line 7, column 4: not valid YAML: its aliases stand for more",
    ),
    Case(
        "billion laughs for a rank",
        text(BOMB + HEAD + ARMS.replace("2", "*i")),
        r"line 7, column 4: not valid YAML: its aliases",
    ),
    Case(
        "a tag that runs Python",
        text(HEAD + ARMS + "about: !!python/object/apply:os.system [id]\n"),
        r"line \d+, column 8: not valid YAML: .*python",
    ),
    Case("two documents in one file", text(HEAD + ARMS + "---\n" + HEAD), r"line 6, column 1: not valid YAML"),
    Case("a date that there is not", text(HEAD + ARMS + "about: 2021-13-45\n"), r"not valid YAML: month"),
    Case(
        "a study file in UTF-16",
        text((HEAD + ARMS).encode("utf-16")),
        r"line 1, column 1: expected UTF-8 text, found the byte 0xff",
    ),
    Case("a byte that is not UTF-8", text((HEAD + ARMS).encode() + b"about: \xe9t\xe9\n"), r"study\.yaml.*UTF-8"),
    Case("NUL bytes in a study file", text((HEAD + ARMS).encode() + b"about: a\0b\n"), r"study\.yaml.*not valid YAML"),
    Case("a binary study file", text(bytes(range(256)) * 4), r"study\.yaml"),
    Case("a study of one line of 10 MB", text(HEAD + ARMS + "about: " + "x" * 10_000_000), r"study\.yaml.*MB"),
    Case(
        "a study of 20,000 keys",
        text(HEAD + ARMS + "declare:\n" + "".join(f"  k{i}: 1\n" for i in range(20_000))),
        r"declare",
    ),
    Case("2,000 brackets, one in the other", deep, r"nested too deeply"),
    Case("a folder for a study file", a_folder, r"is a folder; expected a study file"),
    Case("no such study", lambda place: ("run", "stduy.yaml"), r"no study file"),
    Case(
        "a recipe that is misspelt",
        lambda place: ("run", "book-gtp2"),
        r"no recipe is called 'book-gtp2'.*Did you mean book-gpt2",
    ),
    Case("an unknown key", study(bugdet={"steps": 1}), r"bugdet: unknown key; .*Did you mean budget"),
    Case("an unknown key of the task", task(datta="x"), r"task\.datta: unknown key; .*Did you mean data"),
    Case("an unknown key of an arm", with_lora(rnak=3), r"arms\.lora\.rnak: unknown key; .*Did you mean rank"),
    Case("an unknown method", arm(method="loar"), r"arms\.own\.method: found 'loar'.*Did you mean lora"),
    Case("an unknown kind of task", task(kind="qu"), r"task\.kind: .*'qa'.*'qu'"),
    Case("no arms", study(arms={}), r"arms: expected a mapping of at least one arm"),
    Case("a text for an arm", study(arms={"lora": "lora"}), r"arms\.lora: expected a mapping"),
    Case("no name", text(HEAD.partition("\n")[2] + ARMS), r"name: missing"),
    Case("a name that leaves the folder", study(name="../../etc/passwd"), r"name: .*'\.\./\.\./etc/passwd'"),
    Case("a name with an escape code", study(name="a\x1b[31mred"), r"name: "),
    Case("an arm's name that leaves the folder", study(arms={"../up": LORA["lora"]}), r"arms\.\.\./up.*name"),
    Case("a list where a mapping belongs", study(budget=[1, 2]), r"budget: "),
    Case("a text for a number", study(budget={"steps": "many"}), r"budget\.steps: .*integer.*'many'"),
    Case("steps and epochs at once", study(budget={"steps": 1, "epochs": 1}), r"exactly one of steps, epochs"),
    Case("no steps at all", study(budget={"steps": 0}), r"budget\.steps: .*greater than 0"),
    Case("a rate that is no number", text(HEAD + ARMS.replace("1e-3", ".nan")), r"arms\.lora\.lr.*finite"),
    Case("an infinite rate", text(HEAD + ARMS.replace("1e-3", ".inf")), r"arms\.lora\.lr.*finite"),
    Case("a rate beyond any float", text(HEAD + ARMS.replace("1e-3", "1e999")), r"arms\.lora\.lr.*finite"),
    Case("a negative rate", with_lora(lr=-1e-3), r"arms\.lora\.lr.*greater than 0"),
    Case("a number of 5,000 digits", text(HEAD.replace("6", "9" * 5000) + ARMS), r"study\.yaml"),
    Case("more steps than any machine has", study(budget={"steps": 10**30}), r"budget\.steps"),
    Case("a batch of 10^30", study(budget={"steps": 6, "batch_size": 10**30}), r"budget\.batch_size"),
    Case("a rank of 10^30", with_lora(rank=10**30), r"arms\.lora.*rank"),
    Case("a bottleneck of 10^30", arm(method="bottleneck", size=10**30, lr=1e-3), r"arms\.own.*size"),
    Case("a projection of 10^30", arm(method="prefix", projection=10**30, lr=1e-3), r"arms\.own.*projection"),
    Case(
        "10^30 virtual tokens", arm(method="prompt", num_virtual_tokens=10**30, lr=1e-3), r"num_virtual_tokens|context"
    ),
    Case("a length of 10^30", task(max_length=10**30), r"max_length"),
    Case("a seed of 10^30", study(seeds=[10**30]), r"seeds\.0: .*less than"),
    Case(
        "a grid of a billion arms",
        with_lora(rank=list(range(1, 1001)), alpha=list(range(1, 1001)), dropout=[i / 1000 for i in range(1000)]),
        r"arms\.lora.*1,?000,?000,?000",
    ),
    Case("an empty grid", with_lora(rank=[]), r"arms\.lora\.rank: found an empty list"),
    Case("targets that match nothing", with_lora(targets=["c_atn"]), r"arms\.lora: .*c_atn.*c_attn"),
    Case("a rank above the layer's width", with_lora(rank=17), r"arms\.lora: .*rank 17.*16"),
    Case(
        "an override that may not be", with_lora(override={"seeds": [1]}), r"arms\.lora\.override\.seeds: an arm cannot"
    ),
    Case("an unknown PEFT type", arm(method="peft", peft={"peft_type": "IA4"}, lr=1e-3), r"arms\.own: .*IA4"),
    Case(
        "an unknown PEFT option",
        arm(method="peft", peft={"peft_type": "IA3", "nonsense": 1}, lr=1e-3),
        r"arms\.own: .*nonsense",
    ),
    Case(
        "a PEFT option that imports a module",
        arm(method="peft", peft={"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "antigravity"}),
        r"arms\.own: peft\.megatron_config: LORA has no such option",
    ),
    Case(
        "a PEFT rank of 10^30",
        arm(method="peft", peft={"peft_type": "LOHA", "r": 10**30, "target_modules": ["c_attn"]}, lr=1e-3),
        r"arms\.own",
    ),
    Case("a sequence longer than the context", task(max_length=97), r"task\.max_length: 97 .*96"),
    Case("a metric that is misspelt", task(metrics=["rougeQ"]), r"task\.metrics: found 'rougeQ'"),
    Case("a pattern that is none", task(metrics=["regex:("]), r"'regex:\(' is not a regular expression"),
    Case("a function that cannot be imported", task(metrics=["mine:f"]), r"'mine' cannot be imported"),
    Case("a template with an unknown placeholder", task(template="{prompt}"), r"task\.template: .*placeholder"),
    Case("a decoding that is unknown", study(decoding="gredy"), r"decoding\.0: found 'gredy'"),
    Case("fp16 on a CPU", study(precision="fp16"), r"precision fp16 .*--set precision=bf16"),
)

VALUES = (
    Case("--set without a value", set_value("budget.steps"), r"--set budget\.steps: expected KEY=VALUE"),
    Case("--set of an unknown key", set_value("budget.stpes=3"), r"budget\.stpes: unknown key; .*Did you mean steps"),
    Case("--set below a number", set_value("budget.steps.more=3"), r"--set budget\.steps\.more=3: budget\.steps is 6"),
    Case("--set of what no arm has", set_value("arms.*.rnak=3"), r"no arm gives 'rnak'"),
    Case("--set of broken YAML", set_value("seeds=[1"), r"--set seeds=\[1, line 1, column \d+: not valid YAML"),
    Case("--set of Python", set_value("about=!!python/name:os.system ''"), r"not valid YAML"),
    Case("--set of a key in empty parts", set_value("..=3"), r"--set \.\.=3"),
    Case("--set of the root", set_value("root=/"), r"root: unknown key"),
    Case(
        "--only of an unknown arm",
        lambda place: (*place.study(), "--only", "lroa"),
        r"--only lroa: no arm .*Did you mean lora",
    ),
    Case("--jobs 0", lambda place: (*place.study(), "--jobs", "0"), r"Invalid value for '--jobs'"),
    Case("--cohort of a word", lambda place: (*place.study(), "--cohort", "many"), r"cohort.*many"),
    Case("an unknown command", lambda place: ("traain", STUDY), r"No such command 'traain'"),
    Case("--smoke of a study of one's own", lambda place: (*place.study(), "--smoke"), r"only recipes have one"),
    Case(
        "--figures of an unknown kind",
        lambda place: ("report", place.study()[1], "--figures", "gif"),
        r"figures: found 'gif'; allowed: pdf, png, svg",
    ),
)
