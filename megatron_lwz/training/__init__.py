"""The training stages: state, step, optimizer, checkpoints, and one flat loop per stage.

Only this package knows the order.
"""

from megatron_lwz.distributed import jit

jit.install()  # before a module of this package imports Megatron-Core
