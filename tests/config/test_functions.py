import math

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.functions import load_utility


@pytest.mark.parametrize("path", ["no_such_module:f", "math:no_such_function", "math", "", ":f"])
def test_a_utility_that_cannot_be_imported_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"data\.utility: .*give package\.module:function"):
        load_utility(path)


def test_a_utility_is_imported_by_its_path_and_null_means_none() -> None:
    assert load_utility("math:atan2") is math.atan2
    assert load_utility(None) is None
