"""Parts of the measurements: accuracy of the remaining time, charts."""

from pathlib import Path
from xml.etree import ElementTree

from bench.eta_accuracy import EtaAccuracy
from bench.plots import draw_bars
from services.progress import Progress


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_steady_pace_has_an_exact_eta() -> None:
    clock = Clock()
    eta_accuracy = EtaAccuracy(clock)
    for second in range(11):
        clock.now = float(second)
        eta_accuracy.report(Progress("writing", second, 10))
    found = eta_accuracy.accuracy()["writing"]
    assert found == {"seconds": 10.0, "told": 5, "median_percent": 0.0, "worst_percent": 0.0}


def test_a_pace_that_halves_halfway_has_an_early_eta() -> None:
    clock = Clock()
    eta_accuracy = EtaAccuracy(clock)
    for moment, done in ((0, 0), (1, 10), (2, 20), (4, 30), (6, 40)):
        clock.now = float(moment)
        eta_accuracy.report(Progress("writing", done, 40))
    found = eta_accuracy.accuracy()["writing"]
    # Reported at 2 s: 20 more at 10 a second are 2 s, the truth is 4 s: a third of 6 s.
    assert found["told"] == 2
    assert found["worst_percent"] == 33.3


def test_a_chart_is_well_formed_and_its_longest_bar_is_the_largest_value(tmp_path: Path) -> None:
    file = tmp_path / "bars.svg"
    draw_bars(file, "a < b & c", {"one": 5.0, "two": 20.0}, unit="s")
    root = ElementTree.parse(file).getroot()
    assert next(text.text for text in root.iter("{http://www.w3.org/2000/svg}text")) == "a < b & c"
    lengths = [float(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert lengths == [75.0, 300.0]
