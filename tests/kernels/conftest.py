"""What tests of the C++ kernels share."""

from __future__ import annotations

import pytest

from megatron_lwz.kernels import thin_product


@pytest.fixture(params=["avx512", "avx2", "portable"])
def _instructions(request):
    """Runs the test with each instruction set that this processor has."""
    native = thin_product._cpu
    before = native.instructions()
    try:
        native.use_instructions(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield
    native.use_instructions(before)
