import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.errors import DataError
from autoft.specs import Sample
from autoft.splits import Indices, make_splits


def sample(name, target="a", content=None, split=None, group=None):
    return Sample(name, source=name, target=target, content=content or name, split=split, group=group)


def classes(**counts):
    return [sample(f"{name}/{i:03}", name) for name, count in counts.items() for i in range(count)]


def divide(samples, validation_share=0.15, test_share=0.15, seed=0, stratify=list):
    return make_splits(samples, validation_share=validation_share, test_share=test_share, seed=seed, stratify=stratify)


def ids(samples, indices):
    return {samples[index].id for index in indices}


def by_class(samples, indices):
    return Counter(samples[index].target for index in indices)


def test_every_sample_is_in_one_split():
    samples = classes(a=40, b=25, c=3)
    splits = divide(samples)
    assert sorted([*splits.train, *splits.validation, *splits.test]) == list(range(len(samples)))
    assert splits.made == ("validation", "test")
    assert splits.warnings == ()


def test_classes_keep_their_shares():
    samples = classes(a=100, b=40, c=20)
    splits = divide(samples)
    assert by_class(samples, splits.validation) == {"a": 15, "b": 6, "c": 3}
    assert by_class(samples, splits.test) == {"a": 15, "b": 6, "c": 3}


def test_class_of_three_has_one_sample_in_each_split():
    samples = classes(a=50, b=3)
    splits = divide(samples)
    assert [by_class(samples, part)["b"] for part in (splits.train, splits.validation, splits.test)] == [1, 1, 1]


def test_order_of_the_samples_does_not_matter():
    samples = classes(a=30, b=20)
    shuffled = samples.copy()
    random.Random(0).shuffle(shuffled)
    first, second = divide(samples), divide(shuffled)
    for part in ("train", "validation", "test"):
        assert ids(samples, getattr(first, part)) == ids(shuffled, getattr(second, part))


def test_seed_chooses_the_samples():
    samples = classes(a=30, b=20)
    assert divide(samples, seed=1) == divide(samples, seed=1)
    assert divide(samples, seed=1).validation != divide(samples, seed=2).validation


def test_another_class_leaves_the_division_of_the_others():
    few, many = classes(a=30, b=20), classes(a=30, b=20, c=25)
    assert ids(few, divide(few).test) == {name for name in ids(many, divide(many).test) if not name.startswith("c")}


def test_copies_stay_together():
    samples = classes(a=20, b=20) + [sample(f"a/copy{i}", "a", content="a/004") for i in range(4)]
    for seed in range(20):
        splits = divide(samples, seed=seed)
        holding = [
            part
            for part in (splits.train, splits.validation, splits.test)
            if any("copy" in name for name in ids(samples, part))
        ]
        assert len(holding) == 1
        assert "a/004" in ids(samples, holding[0])
        assert splits.warnings == ()


def test_many_copies_do_not_flood_a_small_split():
    samples = [*classes(a=10, b=10), *(sample(f"a/copy{i:02}", "a", content="same") for i in range(30))]
    for seed in range(10):
        splits = divide(samples, seed=seed)
        assert by_class(samples, splits.validation)["a"] <= 6


def test_declared_splits_are_kept():
    samples = [
        sample(f"{split}/{label}/{i}", label, split=split)
        for split in ("train", "validation", "test")
        for label in "ab"
        for i in range(3)
    ]
    splits = divide(samples)
    assert splits.made == ()
    assert all(name.startswith("validation/") for name in ids(samples, splits.validation))
    assert all(name.startswith("test/") for name in ids(samples, splits.test))


def test_only_the_missing_split_is_made_and_only_from_train():
    samples = [
        sample(f"{split}/{label}/{i}", label, split=split)
        for split in ("train", "test")
        for label in "ab"
        for i in range(10)
    ]
    splits = divide(samples, validation_share=0.2)
    assert splits.made == ("validation",)
    assert len(splits.validation) == 4
    assert all(name.startswith("train/") for name in ids(samples, splits.validation))
    assert len(splits.test) == 20


def test_undeclared_samples_count_as_train():
    samples = [*classes(a=5, b=5), sample("t/a", "a", split="test"), sample("v/b", "b", split="validation")]
    splits = divide(samples)
    assert len(splits.train) == 10


def test_no_test_split_is_made_for_a_share_of_zero():
    splits = divide(classes(a=10, b=10), test_share=0)
    assert splits.test == ()
    assert splits.made == ("validation",)


# --- errors ---


def test_class_of_too_few_distinct_samples_is_named_with_counts():
    copies = [sample(f"b/{i}", "b", content="same" if i else "other") for i in range(7)]
    with pytest.raises(DataError, match=r"at least 3 distinct samples .*'b' \(2 distinct of 7\)") as caught:
        divide([*classes(a=10), *copies])
    assert caught.value.hint


def test_two_distinct_samples_are_enough_for_one_made_split():
    samples = [*classes(a=2, b=2), sample("t/a", "a", split="test")]
    assert by_class(samples, divide(samples).validation) == {"a": 1, "b": 1}
    with pytest.raises(DataError, match="at least 2 distinct"):
        divide([*classes(a=2, b=1), sample("t/a", "a", split="test")])


@pytest.mark.parametrize("split", ["validation", "test"])
def test_class_that_train_lacks_is_named(split):
    samples = [*classes(a=9, b=9), sample("x/1", "owl", split=split)]
    with pytest.raises(DataError, match=rf"every class in {split} must also be in train.*'owl' \(1\)"):
        divide(samples)


def test_empty_train_is_an_error():
    with pytest.raises(DataError, match="train is empty"):
        divide([sample("t/1", "a", split="test")])


def test_repeated_id_is_an_error():
    with pytest.raises(DataError, match="'a/000' occurs twice"):
        divide([*classes(a=5), sample("a/000", "a")])


@pytest.mark.parametrize(("validation_share", "test_share"), [(0, 0.1), (-0.1, 0.1), (0.5, 0.5), (0.1, -0.1), (1.5, 0)])
def test_shares_that_leave_nothing_are_an_error(validation_share, test_share):
    with pytest.raises(DataError, match="share"):
        divide(classes(a=9), validation_share, test_share)


# --- warnings ---


def test_copies_across_declared_splits_are_warned_about_with_examples():
    train = [sample(f"train/{i}", "a", content=f"{i}", split="train") for i in range(9)]
    test = [sample(f"test/{i}", "a", content=f"{i}", split="test") for i in range(5)]
    validation = [sample("val/x", "a", content="x", split="validation")]
    (warning,) = divide([*train, *test, *validation]).warnings
    assert "5 contents are in more than one split" in warning
    assert "test/0 = train/0, test/1 = train/1, test/2 = train/2 and 2 more" in warning


def test_copies_within_one_split_are_not_warned_about():
    samples = [*classes(a=9), sample("copy", "a", content="a/001")]
    assert divide(samples).warnings == ()


def test_same_content_under_two_labels_is_warned_about():
    samples = [*classes(a=9, b=9), sample("b/copy", "b", content="a/001")]
    (warning,) = divide(samples).warnings
    assert "1 content is under more than one label: a/001 = b/copy" in warning


# --- groups ---


def holding(samples, splits):
    """The splits that hold each group."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        group: {name for name, part in parts.items() if any(samples[index].group == group for index in part)}
        for group in {sample.group for sample in samples if sample.group}
    }


def test_groups_stay_together_with_the_copies_of_their_members():
    samples = [sample(f"{i:03}", "ab"[i % 2], group=f"author {i // 5}") for i in range(100)]
    samples += [sample("copy of 0", "a", content="000"), sample("another of 99", "b", content="099", group="author 3")]
    for seed in range(10):
        splits = divide(samples, seed=seed)
        found = holding(samples, splits)
        assert all(len(parts) == 1 for parts in found.values())
        assert found["author 19"] == found["author 3"]  # a copy ties them
        alone = next(index for index, each in enumerate(samples) if each.id == "copy of 0")
        part = next(iter(found["author 0"]))
        assert alone in getattr(splits, part)
        assert splits.validation
        assert splits.test


def test_class_that_leads_no_group_is_divided_with_the_others():
    samples = [sample(f"{i:03}", "rare" if i % 10 == 0 else "common", group=f"{i // 10}") for i in range(100)]
    splits = divide(samples)
    assert all(len(parts) == 1 for parts in holding(samples, splits).values())
    assert by_class(samples, splits.train)["rare"]


def test_class_whose_groups_all_left_train_is_an_error():
    samples = [sample(f"{i:02}", "rare" if i < 2 else "common", group=f"{i // 2}") for i in range(6)]
    messages = []
    for seed in range(20):
        try:
            divide(samples, seed=seed)
        except DataError as error:
            messages.append(str(error))
    assert messages
    assert all("all groups with samples of" in text and "data.split_seed" in text for text in messages)


def test_too_few_groups_are_an_error():
    with pytest.raises(DataError, match=r"at least 3 groups .* are 2"):
        divide([sample(f"{i}", "ab"[i % 2], group=f"{i % 2}") for i in range(30)])


def test_groups_across_declared_splits_are_warned_about():
    samples = [sample(f"{split}/{i}", "a", split=split, group=f"g{i}") for split in ("train", "test") for i in range(5)]
    warnings = divide(samples).warnings
    assert any("5 groups are in more than one of the declared splits" in w and "test/0 = train/0" in w for w in warnings)


# --- targets other than classes ---


def test_numbers_are_divided_without_regard_to_them():
    samples = [sample(f"{i:03}", (float(i),)) for i in range(100)]
    splits = divide(samples, stratify=None)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (70, 15, 15)
    assert splits.warnings == ()
    declared = [sample("t", (0.5,), split="test"), *samples]
    assert len(divide(declared, stratify=None).test) == 1


def test_stratum_too_small_stays_in_train_with_a_warning():
    samples = [sample(f"{i:03}", ("often",)) for i in range(40)] + [sample(f"r{i}", ("often", "rare")) for i in range(2)]
    splits = divide(samples, stratify=lambda targets: [target[-1] for target in targets])
    assert {"r0", "r1"} <= ids(samples, splits.train)
    (warning,) = splits.warnings
    assert "'rare'" in warning
    with pytest.raises(DataError, match="at least 3 distinct"):  # classes must be in every split
        divide([sample(each.id, each.target[-1]) for each in samples])


def test_strata_all_too_small_are_an_error():
    samples = [sample(f"{i}", (f"{i}",)) for i in range(9)]
    with pytest.raises(DataError, match="9 distinct samples have too different targets"):
        divide(samples, stratify=lambda targets: [target[0] for target in targets])


def test_two_samples_cannot_be_divided_into_three():
    with pytest.raises(DataError, match="at least 3 distinct samples"):
        divide([sample("a", (1.0,)), sample("b", (2.0,))], stratify=None)


def test_samples_are_read_once_from_first_to_last():
    class Counting(list):
        read = 0

        def __iter__(self):
            Counting.read += 1
            return super().__iter__()

        def __getitem__(self, index):
            raise AssertionError("read out of order")

    divide(Counting(classes(a=10, b=10)))
    assert Counting.read == 1


def test_indices_are_a_sequence_of_numbers():
    indices = Indices([1, 4, 7])
    assert indices == (1, 4, 7) == indices
    assert indices != (1, 4)
    assert indices[1:] == Indices([4, 7])
    assert list(indices) == [1, 4, 7]
    assert type(indices[0]) is int
    assert hash(indices) == hash(Indices([1, 4, 7]))


# --- any data ---


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1, max_size=80),
    st.floats(0.01, 0.45),
    st.floats(0.01, 0.45),
    st.integers(0, 5),
)
def test_division_is_whole_and_never_tears_copies_apart(entries, validation_share, test_share, seed):
    samples = [sample(f"{i:03}", target, content=str(content)) for i, (target, content) in enumerate(entries)]
    try:
        splits = divide(samples, validation_share, test_share, seed)
    except DataError:
        with pytest.raises(DataError, match="distinct"):
            divide(samples, validation_share, test_share, seed)
        return
    parts = (splits.train, splits.validation, splits.test)
    assert sorted(index for part in parts for index in part) == list(range(len(samples)))
    contents = [{samples[index].content for index in part} for part in parts]
    assert not contents[0] & contents[1]
    assert not contents[0] & contents[2]
    assert not contents[1] & contents[2]
    assert all(parts)


def test_class_whose_samples_all_stand_under_another_label_too_is_told() -> None:
    samples = [Sample(f"{label}{number}", "x", label, f"content {number}") for label in "ab" for number in range(9)]
    with pytest.raises(DataError, match=r"'b' \(all of its samples are copies of other classes'\)"):
        make_splits(samples, validation_share=0.2, test_share=0.2, seed=0)
