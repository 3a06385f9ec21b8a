import torch

from victims.batches import ImageStream, read_batches


class Backwards:
    """A stream of three images, the last one first."""

    def __len__(self):
        return 3

    def batches(self, seed, batch_size):
        self.seed = seed
        for i in (2, 1, 0):
            yield torch.tensor([i]), [torch.full((3, 2, 2), i)]


def test_a_sequence_in_its_order_or_in_a_drawn_one():
    images = [torch.full((3, 2, i + 1), i) for i in range(5)]
    assert [i.tolist() for i, _ in read_batches(images, 2)] == [[0, 1], [2, 3], [4]]
    generator = torch.Generator().manual_seed(0)
    drawn = list(read_batches(images, 2, generator=generator))
    generator.manual_seed(0)
    assert (
        torch.cat([i for i, _ in drawn]).tolist() == torch.randperm(5, generator=generator).tolist()
    )
    assert all(
        x is images[i] for indices, batch in drawn for i, x in zip(indices, batch, strict=True)
    )


def test_a_tensor_gives_the_images_of_the_indices():
    images = torch.arange(4).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    for indices, batch in read_batches(images, 3, generator=torch.Generator().manual_seed(1)):
        assert torch.equal(torch.stack(list(batch)), images[indices])


def test_a_stream_has_its_own_order():
    assert isinstance(Backwards(), ImageStream)
    assert not isinstance(torch.zeros(2), ImageStream)
    stream, generator = Backwards(), torch.Generator().manual_seed(0)
    assert [int(i) for i, _ in read_batches(stream, 2, generator)] == [2, 1, 0]
    first = stream.seed
    list(read_batches(stream, 2, generator))
    assert stream.seed != first  # of the next epoch
    list(read_batches(stream, 2))
    assert stream.seed is None
