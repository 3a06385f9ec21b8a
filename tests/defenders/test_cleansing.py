import pytest

from defenders.cleansing import fine_tune


@pytest.mark.parametrize(
    ("epochs", "every", "measured"),
    [(4, 1, [0, 1, 2, 3, 4]), (5, 2, [0, 2, 4, 5]), (0, 3, [0]), (3, 7, [0, 3])],
)
def test_measured_while_it_trains(epochs, every, measured):
    trained = []

    def train(metrics):
        rows = []
        for epoch in range(epochs + 1):
            trained.append(epoch)
            rows.append({"epoch": float(epoch), **metrics(epoch)})
        return rows

    rows = fine_tune(train, epochs=epochs, measure=lambda: {"steps": len(trained)}, every=every)
    assert rows == [{"epoch": epoch, "steps": epoch + 1} for epoch in measured]


def test_bad_arguments():
    with pytest.raises(ValueError, match="every must be at least 1 and epochs 0, got 0 and 3"):
        fine_tune(lambda metrics: [], epochs=3, measure=dict, every=0)
