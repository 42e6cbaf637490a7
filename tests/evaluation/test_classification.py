"""Class scores: those of the model alone on each sequence, whatever the batch; label words; the majority class."""

import math

import numpy as np
import pytest
import torch
from tests.methods.models import CONFIGS, make_classifier, make_model
from tests.training.helpers import PAD, Recorder, make_labelled, make_loop, runtime

from tuneoff.data.batching import evaluation_batches
from tuneoff.errors import ModelError
from tuneoff.evaluation.likelihood import score_split
from tuneoff.evaluation.zero_shot import score_label_words, score_majority
from tuneoff.methods import LoRA
from tuneoff.methods.heads import train_head
from tuneoff.training.steps import Forward, to_device


@pytest.mark.parametrize("architecture", CONFIGS)
def test_class_scores_are_the_models_own_at_any_batch_size(architecture: str) -> None:
    model, split = make_classifier(architecture), make_labelled(num_sequences=30)
    forward = Forward(model)
    assert forward.check(torch.tensor([[5, 6, 7]]))
    nll, predictions = [], []
    for index in range(len(split)):
        ids = torch.tensor(split.sequence(index)[0].astype(np.int64))[None]
        with torch.no_grad():
            logits = model.double()(input_ids=ids).logits[0]  # alone, so nothing is padded; float64
        nll.append(-float(logits.log_softmax(-1)[split.labels[index]]))
        predictions.append(int(logits.argmax()))
    model.float()
    for batch_size in (1, 7, 30, None):
        found = score_split(model, forward, split, runtime(), PAD, batch_size=batch_size)
        assert found.nll_nats == pytest.approx(nll, rel=1e-5)
        assert found.predictions is not None
        assert found.predictions.tolist() == predictions
        assert found.likelihood.num_target_tokens == found.likelihood.num_sequences == 30
        assert found.likelihood.vocabulary_size == 3
        assert found.likelihood.bits_per_byte is None


def test_a_padding_token_within_a_text_does_not_move_what_is_pooled() -> None:
    model, split = make_classifier("gpt2"), make_labelled(num_sequences=6, longest=9)
    split.input_ids[split.offsets[1:] - 1] = PAD  # every text ends in the token that also fills up
    alone = [
        float(score_split(model, Forward(model), split, runtime(), PAD, batch_size=1).nll_nats[i]) for i in range(6)
    ]
    together = score_split(model, Forward(model), split, runtime(), PAD, batch_size=6).nll_nats
    assert together == pytest.approx(alone, rel=1e-5)


def test_the_targets_of_a_batch_are_its_classes() -> None:
    split = make_labelled(num_sequences=5)
    (batch,) = evaluation_batches(split, 5, PAD)
    placed = to_device([batch], torch.device("cpu"), PAD)
    assert placed.labels.tolist() == split.labels[batch.slots].tolist()
    assert placed.positions.tolist() == (batch.lengths - 1).tolist()


def test_a_classifier_that_is_not_a_head_at_the_last_token_is_refused() -> None:
    model = make_classifier("gpt2")
    model.score.register_forward_hook(lambda module, args, out: out * torch.arange(out.shape[-1]))
    own = model.forward
    model.forward = lambda **given: own(**given | {"input_ids": given["input_ids"].flip(1)})
    with pytest.raises(ModelError, match="not those of one head at the last token"):
        Forward(model).check(torch.tensor([[5, 6, 7]]))


def test_a_classifier_learns_and_goes_on_from_a_checkpoint() -> None:
    split = make_labelled(num_sequences=8, longest=12)

    def start() -> tuple[Recorder, object]:
        recorder = Recorder()
        adapted = train_head(LoRA(rank=8).adapt(make_classifier("gpt2"), torch.Generator().manual_seed(0)))
        return recorder, make_loop(adapted, [0], [3e-2], split, recorder, num_steps=150, batch_size=4, micro_batch=3)

    recorder, loop = start()
    loop.run()
    validation = recorder.losses(kind="validation")
    assert validation[-1] < 0.5 * math.log(3)
    again, second = start()
    second.run(recorder.checkpoints[-2])
    assert again.losses()[-1] == recorder.losses()[-1]


@pytest.mark.parametrize("architecture", ["gpt2", "llama-untied"])
def test_label_words_are_weighed_by_their_likelihood_after_the_prompt(architecture: str) -> None:
    model, split = make_model(architecture), make_labelled(num_sequences=8, num_classes=2)
    words = ((7, 9), (8,))
    found = score_label_words(model, Forward(model), split, words, runtime(), PAD)
    model.double()
    for index in range(len(split)):
        prompt = split.sequence(index)[0].astype(np.int64).tolist()
        logs = []
        for word in words:
            with torch.no_grad():
                table = model(input_ids=torch.tensor([prompt + list(word)])).logits[0].log_softmax(-1)
            logs.append(sum(float(table[len(prompt) - 1 + k, token]) for k, token in enumerate(word)))
        share = [math.exp(log) / sum(math.exp(other) for other in logs) for log in logs]
        assert found.nll_nats[index] == pytest.approx(-math.log(share[split.labels[index]]), rel=1e-5)
        assert found.predictions is not None
        assert found.predictions[index] == int(np.argmax(share))
    assert found.likelihood.vocabulary_size == 2


def test_the_majority_class_is_that_of_training() -> None:
    train, test = make_labelled(num_sequences=50, seed=1), make_labelled(num_sequences=9, seed=2)
    train.labels[:30] = 1
    found = score_majority(train, test, 3)
    shares = np.bincount(train.labels, minlength=3) / 50
    assert found.predictions is not None
    assert found.predictions.tolist() == [1] * 9
    assert found.nll_nats == pytest.approx(-np.log(shares[test.labels]))
