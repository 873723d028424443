"""Some tests import Megatron-Core before any module of ours does; as in a run, torch's compiler stays out without a GPU."""

from megatron_lwz.distributed import jit

jit.install()
