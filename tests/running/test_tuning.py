"""A search that extends its grids, in real runs: stopped in the middle of it, it goes on and ends the same."""

from pathlib import Path

import pytest
from tests.running.world import NUM_JOBS, Events, scores, study_of, weights

from tuneoff import api
from tuneoff.running.events import Event
from tuneoff.study.spec import Study

pytestmark = pytest.mark.slow

ARMS = {
    "zero-shot": {"method": "none"},
    "full": {"method": "full", "tune": {"lr": "auto"}},
    "lora": {"method": "lora", "rank": 4, "dropout": 0.1, "tune": {"lr": "auto"}},
}
EXTEND = 2


@pytest.fixture(scope="module")
def study(world: Path) -> Study:
    return study_of(world, "searched", ARMS, seeds=[0, 1], tuning={"extend": EXTEND})


class Stop(Events):
    """Stops the study, as Ctrl-C does, when the run starts that follows a number of finished ones."""

    def __init__(self, num_finished: int) -> None:
        super().__init__()
        self.num_finished = num_finished

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event.kind == "start" and len(self.of("finished")) >= self.num_finished:
            raise KeyboardInterrupt


def test_stopped_at_any_time_it_ends_the_same(study: Study, tmp_path: Path) -> None:
    told = Events()
    undisturbed = api.run(study, tmp_path / "undisturbed", num_jobs=NUM_JOBS, listener=told)
    # The tiny base wants rates far above the rule's, so both rounds are needed; then two seeds of the best.
    summary = undisturbed.summary()
    full, lora = summary.arm("full"), summary.arm("lora")
    assert len(full.trials) == len(lora.trials) == 3 + EXTEND
    assert [trial.lr for trial in full.trials] == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
    assert (full.chosen_lr, full.edge) == (1e-3, "highest")
    assert [event.body["num_more"] for event in told.of("extended")] == [2] * EXTEND
    records, tests = undisturbed.records()
    assert (len(records), len(tests), summary.num_left) == (1 + 2 * (3 + EXTEND) + 2, 1 + 2 * 2, 0)
    order = [event.task for event in told.of("start") if event.task]
    trained = [task for task in order if task.kind == "train" and task.run.lr is not None]
    assert [task.run.seed for task in trained] == [0] * 10 + [1] * 2
    assert [{task.run.lr for task in trained[place : place + 2]} for place in (6, 8)] == [{3e-4, 3e-3}, {1e-3, 1e-2}]

    for num_finished in (2, 8):  # in the first grid, and in the first round
        with pytest.raises(KeyboardInterrupt):
            api.run(study, tmp_path / "stopped", num_jobs=NUM_JOBS, listener=Stop(num_finished))
    result = api.run(study, tmp_path / "stopped", num_jobs=NUM_JOBS)
    assert not result.failed
    assert scores(result) == scores(undisturbed)
    assert weights(result) == weights(undisturbed)
    assert [arm.trials for arm in result.summary().arms] == [arm.trials for arm in summary.arms]
