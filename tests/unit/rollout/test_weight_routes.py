"""What vLLM's /server_info says of NCCL, in the forms of its collect_env."""

import pytest

from megatron_lwz.rollout.weight_routes import read_nccl

PACKAGES = "numpy==2.4.6\nnvidia-cublas==13.1.0.3\nnvidia-nccl-cu13==2.29.7\ntorch==2.13.0+cu130"


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"vllm_env": {}, "system_env": {"pip_packages": PACKAGES}}, "2.29.7"),
        ({"system_env": {"pip_packages": PACKAGES.replace("nvidia", "[pip3] nvidia")}}, "2.29.7"),
        ({"vllm_env": {"VLLM_NCCL_SO_PATH": "/opt/nccl.so"}, "system_env": {"pip_packages": PACKAGES}}, None),
        ({"system_env": {"pip_packages": PACKAGES + "\nnvidia-nccl-cu12==2.27.5"}}, None),
        ({"system_env": {"pip_packages": "torch==2.13.0"}}, None),
        ({"system_env": {"pip_packages": None}}, None),
        ({}, None),
    ],
)
def test_the_version_is_read_or_not_known(info, version):
    assert read_nccl(info) == version
