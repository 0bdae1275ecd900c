"""The time that a training still takes, on simulated durations: within 30 % after a twentieth of the steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from rankwright.training.eta import DEV_SECONDS, EVALUATION, REFRESH, SAVE, STEP_SECONDS, Eta


@dataclass
class Training:
    """What a training spends its time on. Batches vary in size, and the machine does other work now and then."""

    steps: int
    evaluate_every: int
    save_every: int
    refresh_every: int | None
    seed: int
    compile_s: float = 30.0
    evaluation_s: float = 6.0
    now: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)

    def run(self, first: int = 1, stop: int | None = None) -> Iterator[tuple[int, float]]:
        """(step, seconds that the estimate gives) from `first` on; a later start compiles and evaluates anew."""
        random_ = random.Random(f"{self.seed} {first}")
        every = {EVALUATION: self.evaluate_every, SAVE: self.save_every}
        every |= {} if self.refresh_every is None else {REFRESH: self.refresh_every}
        eta = Eta(self.steps, every, list(self.rows) if first > 1 else (), clock=lambda: self.now)
        if first == 1:
            with eta.timing(EVALUATION):
                self.now += 1.4 * self.evaluation_s
        self.now += 10.0  # trackers, and a first look at the speed
        eta.start()
        for step in range(first, (stop or self.steps) + 1):
            if self.refresh_every is not None and step > 1 and (step - 1) % self.refresh_every == 0:
                with eta.timing(REFRESH):
                    self.now += 12.0 * random_.uniform(0.8, 1.2)
            seconds = random_.lognormvariate(-0.05, 0.3) * (4.0 if random_.random() < 0.02 else 1.0)
            self.now += seconds + (self.compile_s if step == first else 0.0)
            row = {"step": step, STEP_SECONDS: seconds}
            if step % self.evaluate_every == 0 or step == self.steps:
                with eta.timing(EVALUATION):
                    self.now += self.evaluation_s * random_.uniform(0.9, 1.1)
                row[DEV_SECONDS] = eta.last(EVALUATION)
            if step % self.save_every == 0 or DEV_SECONDS in row:
                with eta.timing(SAVE):
                    self.now += 0.5
            self.rows.append(row)
            eta.step()
            yield step, eta.left(step)


def error_after(training: Training, step: int, first: int = 1) -> float:
    """The estimate after a step less what it takes, as a share of that."""
    estimate = started = 0.0
    for done, left in training.run(first):
        if done == step:
            estimate, started = left, training.now
    return abs(estimate - (training.now - started)) / (training.now - started)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("steps", [100, 400, 3000])
@pytest.mark.parametrize("refresh", [None, 50])
def test_it_is_within_30_percent_after_a_twentieth(seed: int, steps: int, refresh: int | None) -> None:
    # Before the first refresh its time is unknown, and little beside the steps.
    training = Training(steps, evaluate_every=min(100, steps // 5), save_every=50, refresh_every=refresh, seed=seed)
    assert error_after(training, steps // 20) < 0.3


@pytest.mark.parametrize("seed", range(10))
def test_dev_may_take_as_long_as_the_steps(seed: int) -> None:
    training = Training(200, evaluate_every=40, save_every=50, refresh_every=None, seed=seed, evaluation_s=45.0)
    assert error_after(training, 10) < 0.3 + 0.4 / 1.4  # the evaluation of the base alone, which was slower


@pytest.mark.parametrize("seed", range(10))
def test_a_training_that_continues_knows_its_earlier_steps(seed: int) -> None:
    training = Training(400, evaluate_every=40, save_every=50, refresh_every=None, seed=seed, evaluation_s=30.0)
    list(training.run(1, stop=100))
    # After one own step, which compiled.
    assert error_after(training, 101, first=101) < 0.3


@pytest.mark.parametrize(("total", "every", "evaluations"), [(10, 4, 3), (8, 4, 2), (3, 5, 1)])
def test_what_comes_is_counted_exactly(total: int, every: int, evaluations: int) -> None:
    ticks = iter([0.0, 0.0, 10_000.0, 0.0, 1_000_000.0])
    earlier = [{STEP_SECONDS: 1.0, DEV_SECONDS: 100.0}]
    eta = Eta(total, {EVALUATION: every, SAVE: 3, REFRESH: every}, earlier, clock=lambda: next(ticks))
    for kind in (REFRESH, SAVE):
        with eta.timing(kind):
            pass
    for done in range(total):
        steps = range(done + 1, total + 1)
        refreshes = sum(step % every == 0 for step in steps if step < total)
        # At each evaluation, each third step, and once only where they meet.
        saves = sum(step % every == 0 or step % 3 == 0 or step == total for step in steps)
        expected = len(steps) + 10_000 * refreshes + 1_000_000 * saves
        assert eta.left(done) - expected == 100 * sum(step % every == 0 or step == total for step in steps)
    assert eta.left(0) // 100 % 100 == evaluations and eta.left(total) == 0
