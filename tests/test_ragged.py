import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoft.ragged import Ragged

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=12)


def rows_of(lengths: list[int]) -> list[torch.Tensor]:
    return [torch.arange(10 * number, 10 * number + length) for number, length in enumerate(lengths)]


@given(LENGTHS, st.data())
def test_chosen_rows_are_those_of_the_list(lengths: list[int], data: st.DataObject) -> None:
    rows = rows_of(lengths)
    ragged = Ragged.of(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    found = ragged[np.array(chosen, dtype=np.int64)]
    assert [found.row(place).tolist() for place in range(len(found))] == [rows[place].tolist() for place in chosen]


@given(LENGTHS)
def test_padded_rows_hold_their_values_and_then_the_filler(lengths: list[int]) -> None:
    ragged = Ragged.of(rows_of(lengths))
    padded = ragged.padded(-1)
    assert padded.shape == (len(lengths), max(lengths))
    for number, row in enumerate(rows_of(lengths)):
        assert padded[number].tolist() == row.tolist() + [-1] * (max(lengths) - len(row))
    assert torch.equal(padded[ragged.mask()], ragged.values)


def test_rows_of_several_columns_are_padded_together() -> None:
    ragged = Ragged.of([torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6]])])
    assert ragged.padded(0).tolist() == [[[1, 2], [3, 4]], [[5, 6], [0, 0]]]


def test_joined_parts_are_all_their_rows() -> None:
    first, second = Ragged.of(rows_of([2, 0])), Ragged.of(rows_of([3]))
    joined = Ragged.cat([first, second])
    assert joined.lengths.tolist() == [2, 0, 3]
    assert joined.row(2).tolist() == second.row(0).tolist()
    assert joined[torch.tensor([True, False, True])].lengths.tolist() == [2, 3]
    assert joined[1:].lengths.tolist() == [0, 3]
    assert joined.nbytes == 5 * 8
