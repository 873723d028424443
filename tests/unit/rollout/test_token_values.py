import numpy as np
import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.rollout import token_values

SEGMENTS = np.array([(7, 1, 5, 3), (7, 0, 4, 2), (7, 1, 10, 2)])  # of rollout 7-1 another rank holds tokens 8 and 9


def write(folder, rank, segments, first=0.0):
    count = int(segments[:, 3].sum())
    values = first + np.arange(count, dtype=np.float32)
    token_values.write(token_values.file_of(folder, rank), segments, values, -values)


def test_the_parts_of_several_ranks_come_together_and_gaps_stay_unknown(tmp_path):
    write(tmp_path, 0, SEGMENTS)
    write(tmp_path, 1, np.array([(7, 1, 8, 1)]), first=50.0)
    found = token_values.read(tmp_path, 7, 1, prompt_tokens=5, tokens=7)
    np.testing.assert_array_equal(found.entropy, [0, 1, 2, 50, np.nan, 5, 6])
    np.testing.assert_array_equal(found.difference, [0, -1, -2, -50, np.nan, -5, -6])
    assert token_values.read(tmp_path, 8, 0, prompt_tokens=5, tokens=7) is None
    assert token_values.read(tmp_path / "none", 7, 1, prompt_tokens=5, tokens=7) is None


def test_values_that_do_not_fit_the_rollout_and_torn_files_name_the_file(tmp_path):
    write(tmp_path, 0, SEGMENTS)
    with pytest.raises(DataError, match=r"rank_00000.* do not fit its 6 tokens"):
        token_values.read(tmp_path, 7, 1, prompt_tokens=5, tokens=6)
    path = token_values.file_of(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"rank_00000.*cannot be read"):
        token_values.read(tmp_path, 7, 1, prompt_tokens=5, tokens=7)
