import re

import pytest

from adafocus_env.work_shard import WHOLE, WorkShard
from classifiers.errors import InputError


@pytest.mark.parametrize(("size", "count"), [(10, 1), (10, 3), (2, 4), (0, 2)])
def test_every_item_is_in_one_shard_and_sizes_differ_by_one_at_most(size, count):
    shards = [WorkShard.parse(f"{index}/{count}").of(range(size)) for index in range(1, count + 1)]
    assert sorted(item for shard in shards for item in shard) == list(range(size))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all(sorted(shard) == list(shard) for shard in shards)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "1/", "/2", "a/b", "1", "1/2/3", "-1/2", "1 / 2", "", "1.0/2"])
def test_other_shards_are_refused(text):
    with pytest.raises(InputError, match=rf"shard must be I/N with 1 ≤ I ≤ N, got {re.escape(repr(text))}; shards are counted from 1"):
        WorkShard.parse(text)


def test_names_state_the_shard_only_if_the_list_is_divided():
    assert WorkShard(2, 4).suffix == "-2-of-4" and WHOLE.suffix == "" and WHOLE.whole and not WorkShard(2, 4).whole
