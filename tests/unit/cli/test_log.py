"""What is chosen is said on stdout; stderr stays for warnings and the one error line."""

import logging

from megatron_lwz.cli import common


def test_choices_go_to_stdout_and_warnings_to_stderr_once_however_often_a_command_runs(capsys):
    def main(_arguments):
        logging.getLogger("megatron_lwz.kernels").info("kernels: torch")
        logging.getLogger("megatron_lwz.rollout").warning("engine is slow")

    for _ in range(2):
        assert common.run(main, []) == 0
        shown = capsys.readouterr()
        assert shown.out == "INFO: kernels: torch\n"
        assert shown.err == "WARNING: engine is slow\n"
