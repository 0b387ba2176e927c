"""When a campaign looks at its error, when it stops, and how it watches the machine's speed; time is made up."""

import pytest

from latpred.collect.looks import UNSTEERED, Looks, is_flat
from latpred.collect.reference_watch import FIRST_TIMINGS, RETRIES, ReferenceWatch, Speed
from latpred.collect.runner import NullRunner, RunPlan, RunResult
from latpred.errors import ArtefactError
from latpred.store import Dataset, Meta


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def sleep(self, duration_s):
        self.now_s += duration_s


def looks_of(tmp_path, budget_s, cost_s=0.0, error_by_kind=None):
    clock = Clock()

    def quick_fit(dataset):
        clock.now_s += cost_s
        return {}

    dataset = Dataset.create(tmp_path, Meta("local", "EPYC", "onnxruntime", "1.31.1", threads=1))
    return Looks(dataset, error_by_kind or quick_fit, budget_s, clock)


def times_s(looks, records=50):
    """Seconds of the run at which it looks, if asked each second."""
    found = []
    for elapsed_s in range(int(looks.budget_s)):
        if looks.due(elapsed_s, records):
            looks.look(elapsed_s, records)
            found.append(elapsed_s)
    return found


@pytest.mark.parametrize(
    ("budget_s", "expected_s"),
    [
        (239.0, []),
        (240.0, [84, 120, 156, 192]),
        (900.0, [315, 450, 585, 720]),
        (1800.0, [315, 495, 675, 855, 1035, 1215, 1395]),
        (7200.0, [315 + 576 * turn for turn in range(11)]),
    ],
)
def test_looks_follow_the_budget(tmp_path, budget_s, expected_s):
    looks = looks_of(tmp_path, budget_s)
    looks.start(records=0)
    assert times_s(looks) == expected_s


def test_looks_together_stay_below_their_share_of_the_budget(tmp_path):
    looks = looks_of(tmp_path, 900.0, cost_s=20.0)
    looks.start(records=0)
    assert times_s(looks) == [315, 450]  # 20 s each: a third one would pass 45 s
    assert looks.spent_s == 40.0
    assert looks.notices == []


def test_a_look_at_many_more_records_costs_more(tmp_path):
    looks = looks_of(tmp_path, 900.0, cost_s=5.0)
    looks.start(records=0)
    assert looks.due(315.0, 100)
    looks.look(315.0, 100)
    assert not looks.due(450.0, 801)  # 5 + 40.05 s
    assert looks.due(585.0, 799)


def test_a_campaign_that_goes_on_looks_at_once(tmp_path):
    looks = looks_of(tmp_path, 900.0)
    looks.start(records=100)
    assert times_s(looks) == [0, 135, 270, 405, 540, 675]
    looks.start(records=99)
    assert not looks.due(0.0, 99)


def test_a_look_that_costs_too_much_is_told_once(tmp_path):
    looks = looks_of(tmp_path, 900.0)
    looks.start(records=100_000)
    assert times_s(looks, records=100_000) == []
    assert looks.notices == [UNSTEERED]


def test_a_look_that_fails_is_the_last(tmp_path):
    def fail(dataset):
        raise ArtefactError("device.toml is needed")

    looks = looks_of(tmp_path, 900.0, error_by_kind=fail)
    looks.start(records=0)
    assert times_s(looks) == [315]
    assert [notice.rpartition(": ")[2] for notice in looks.notices] == ["device.toml is needed"]
    assert looks.validation == []


def test_errors_are_flat_when_each_of_three_looks_wins_less_than_a_fiftieth():
    assert is_flat([1.0, 0.981, 0.963, 0.945])
    assert not is_flat([1.0, 0.981, 0.963])  # two falls only
    assert not is_flat([1.0, 0.979, 0.970, 0.961])
    assert not is_flat([1.0, 0.99, 0.98, 0.95])
    assert is_flat([0.5, 0.6, 0.7, 0.8])


def test_nothing_stops_within_ten_minutes(tmp_path):
    looks = looks_of(tmp_path, 3600.0)
    looks.validation = [(100.0 * turn, 0.05) for turn in range(4)]
    assert not looks.no_longer_falls(599.0)
    assert looks.no_longer_falls(600.0)


def watch_of(latencies_s, cost_s=0.1):
    clock = Clock()
    left = list(latencies_s)

    def answer(model, call):
        clock.now_s += cost_s
        return RunResult((left.pop(0),))

    runner = NullRunner(answer)
    return ReferenceWatch(runner, RunPlan(threads=2), clock=clock, sleep=clock.sleep), clock, runner


@pytest.mark.parametrize(("cost_s", "pause_s"), [(0.1, 8.0), (0.5, 25.0)])
def test_the_reference_takes_a_fiftieth_of_the_time_at_most(cost_s, pause_s):
    watch, clock, runner = watch_of([0.002] * 9, cost_s)
    watch.start()
    clock.now_s += pause_s - 0.01
    assert not watch.due
    clock.now_s += 0.02
    assert watch.due
    assert len(runner.plans) == FIRST_TIMINGS
    assert runner.plans[0].threads == 2
    assert not runner.plans[0].profile


def test_the_running_median_is_the_speed_and_the_last_timing_is_told_beside_it():
    watch, _, _ = watch_of([0.0020, 0.0020, 0.0021, 0.00206])
    watch.start()
    assert (watch.reference_s, watch.ratio) == (0.0020, pytest.approx(1.05))
    assert watch.check() is Speed.STEADY
    assert watch.reference_s == pytest.approx(0.00203)  # median of four
    assert watch.ratio == pytest.approx(0.00206 / 0.00203)


def test_a_speed_that_comes_back_was_disturbed_and_one_that_does_not_has_changed():
    watch, clock, _ = watch_of([0.002] * 3 + [0.0022, 0.0022, 0.002] + [0.0025] * RETRIES)
    watch.start()
    before_s = clock.now_s
    assert watch.check() is Speed.DISTURBED
    assert clock.now_s == pytest.approx(before_s + 3 * 0.1 + 2 * 1.0)
    assert watch.notices == []
    assert watch.check() is Speed.CHANGED
    assert (watch.reference_s, watch.ratio) == (0.0025, 1.0)
    assert len(watch.notices) == 1


def test_waiting_ends_with_the_budget():
    watch, clock, _ = watch_of([0.002] * 3 + [0.003] * 2)
    watch.start()
    assert watch.check(until_s=clock.now_s + 0.5) is Speed.UNSETTLED
    assert watch.notices == []
