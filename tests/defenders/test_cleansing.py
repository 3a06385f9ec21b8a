import pytest

from defenders.cleansing import fine_tune


@pytest.mark.parametrize(
    ("epochs", "every", "looked"),
    [(4, 1, [0, 1, 2, 3, 4]), (5, 2, [0, 2, 4, 5]), (0, 3, [0]), (3, 7, [0, 3])],
)
def test_measured_while_it_trains(epochs, every, looked):
    trained = []

    def train(after_epoch):
        for epoch in range(epochs + 1):
            trained.append(epoch)
            after_epoch(epoch)

    rows = fine_tune(train, epochs=epochs, measure=lambda: len(trained), every=every)
    assert rows == [(epoch, epoch + 1) for epoch in looked]


def test_rows_before_a_kill_stay():
    rows = [(0, 0), (1, 1)]
    fine_tune(lambda after: [after(2), after(3)], epochs=3, measure=lambda: 7, rows=rows)
    assert rows == [(0, 0), (1, 1), (2, 7), (3, 7)]


def test_bad_arguments():
    with pytest.raises(ValueError, match="every must be at least 1 and epochs 0, got 0 and 3"):
        fine_tune(lambda after: None, epochs=3, measure=lambda: None, every=0)
