"""`lwz evaluate generate PROMPTS --output FILE`: responses from any engine, or from a checkpoint it serves itself."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from megatron_lwz.cli import common, evaluate_engine, option_types
from megatron_lwz.cli.evaluate_progress import Bar
from megatron_lwz.config import read_hf_architecture
from megatron_lwz.data.start_check import beyond_context, check_vocabulary
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import environment
from megatron_lwz.evaluation.generate import Plan, Progress, generate, prompt_text, settings_of
from megatron_lwz.evaluation.presets import PRESETS, Sampling
from megatron_lwz.evaluation.response_file import ResponseFile
from megatron_lwz.evaluation.tasks import Task, read_tasks
from megatron_lwz.http.completions import Api, CompletionClient

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> None:
    """Writes the responses that are missing in the file. Raises LwzError."""
    options = _parser().parse_args(list(argv))
    if (options.url is None) == (options.model is None):
        raise common.UsageError("give --url and --served-model, or --model: one engine writes the responses")
    if options.url and not options.served_model:
        raise common.UsageError("--served-model is missing: the name that the server knows the model by")
    tasks = read_tasks(options.prompts)[: options.limit]
    plan = _plan(options)
    client = None
    if options.model is not None:
        _check_model(options, tasks, plan)
    else:
        client = _client(options, options.url, environment.get(options.api_key_env), options.served_model)
    name = options.served_model or evaluate_engine.identity(options.model)
    with ExitStack() as stack:
        file = stack.enter_context(ResponseFile(options.output, tasks, settings_of(plan, name)))
        missing = [task for task in tasks for k in range(plan.samples) if (task.id, k) not in file.done]
        if not missing:
            common.console().print(f"{options.output}: complete, {len(file.done)} responses", markup=False)
            return
        if client is None:
            client, plan = _embedded(options, plan, stack)
        asyncio.run(_run(tasks, client, file, plan))
    common.console().print(f"{options.output}: {len(file.done)} responses", markup=False)


async def _run(tasks: Sequence[Task], client: CompletionClient, file: ResponseFile, plan: Plan) -> None:
    begin = time.monotonic()

    def show(progress: Progress) -> None:
        speed = progress.characters / max(time.monotonic() - begin, 1e-3)
        note = f"{speed:.0f} characters/s"
        note += f"  {progress.truncated} cut off" if progress.truncated else ""
        note += f"  {progress.failed} failed" if progress.failed else ""
        bar(progress.done, progress.total, note)

    with Bar("responses") as bar:
        async with client:
            await generate(tasks, client, file, plan, show)


def _check_model(options: argparse.Namespace, tasks: Sequence[Task], plan: Plan) -> None:
    """Checks that prompts and responses fit the model that the embedded engine will serve. Raises LwzError.

    The limit of a preset is reduced to what fits, with a warning. A limit that was asked for is not.
    """
    arch, tokenizer, source = evaluate_engine.sizes_of(options.model)
    check_vocabulary(arch, tokenizer, source)
    prompt, task = max((len(tokenizer.encode(prompt_text(task, plan))), task.id) for task in tasks)
    if note := tokenizer.control_note():
        log.warning("%s: %d prompts%s", options.prompts, len(tasks), note)
    limit = plan.sampling.max_tokens
    fault = beyond_context(arch, prompt + limit, source)
    if fault is None:
        return
    if options.max_tokens is not None or prompt >= arch.context_length:
        raise common.UsageError(f"--max-tokens {limit}: with the {prompt} tokens of prompt {task!r}, {fault}")
    log.warning("preset %s asks for %d tokens, the model has room for %d after its longest prompt: "
                "responses end there", options.preset, limit, arch.context_length - prompt)  # fmt: skip


def _embedded(options: argparse.Namespace, plan: Plan, stack: ExitStack) -> tuple[CompletionClient, Plan]:
    """Starts an engine; returns its client, and the plan with the engine's tokenizer and context length."""
    folder = stack.enter_context(evaluate_engine.servable(options.model, options.output.parent))
    tokenizer, longest = Tokenizer(folder), read_hf_architecture(folder).context_length
    server = stack.enter_context(
        evaluate_engine.serving(
            folder,
            options.output.with_name(options.output.name + ".engine.log"),
            slots=plan.concurrency,
            dtype=options.dtype,
            threads=options.threads,
        )
    )
    plan = replace(plan, encode=tokenizer.encode, context=longest)
    return _client(options, server.url, server.token, "policy", api="completions"), plan


def _client(
    options: argparse.Namespace, url: str, key: str | None, model: str, *, api: Api | None = None
) -> CompletionClient:
    route: Api = api or options.api or ("chat" if options.template in (None, "plain") else "completions")
    return CompletionClient(url, key, model=model, api=route, timeout=options.timeout, key_name=options.api_key_env)


def _plan(options: argparse.Namespace) -> Plan:
    preset = PRESETS[options.preset]
    given = {name: getattr(options, name) for name in ("temperature", "top_p", "top_k", "max_tokens")}
    sampling = Sampling(**(preset.as_json() | {name: value for name, value in given.items() if value is not None}))
    if options.model and sampling.top_k:
        log.warning("the embedded engine has no top-k: %d is left out", sampling.top_k)
        sampling = replace(sampling, top_k=0)
    template: Literal["think", "direct", "row"] | None = options.template or ("row" if options.model else None)
    return Plan(
        sampling,
        None if options.template == "plain" else template,
        options.style,
        options.samples,
        options.seed,
        options.concurrency,
        options.retries,
    )


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="lwz evaluate generate", description="Have a model write to every prompt of a file.")
    parser.add_argument("prompts", metavar="PROMPTS", type=Path, help="JSONL: ours, or a benchmark's file as it is")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="JSONL of responses; goes on in it")
    engine = parser.add_argument_group("who writes")
    engine.add_argument("--url", help="a running OpenAI-compatible server")
    engine.add_argument("--served-model", metavar="NAME", help="the name that the server knows the model by")
    engine.add_argument("--api", choices=("chat", "completions"), help="default: chat for plain prompts")
    engine.add_argument(
        "--api-key-env",
        metavar="NAME",
        type=option_types.variable,
        default="LWZ_ENGINE_TOKEN",
        help="variable with its key",
    )
    engine.add_argument("--model", metavar="DIR", type=Path, help="Hugging Face folder, run folder or checkpoint")
    engine.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the engine started for --model")
    engine.add_argument("--threads", type=option_types.not_negative, default=0, help="its CPU threads; 0: all cores")
    how = parser.add_argument_group("how")
    how.add_argument("--preset", choices=sorted(PRESETS), default="longwriter-zero", help="sampling of a benchmark")
    how.add_argument("--temperature", type=option_types.not_negative_number)
    how.add_argument("--top-p", type=option_types.fraction)
    how.add_argument("--top-k", type=option_types.not_negative, help="0: no bound")
    how.add_argument("--max-tokens", type=option_types.positive)
    how.add_argument(
        "--template",
        choices=("think", "direct", "row", "plain"),
        help="our policies' prompt, or the prompt as it is (plain); row: what each row says. Default: row with --model",
    )
    how.add_argument("--style", choices=("paper", "bare"), default="paper", help="as data.template of the training")
    how.add_argument("--samples", type=option_types.positive, default=1, help="responses per prompt")
    how.add_argument("--seed", type=option_types.not_negative, default=0)
    how.add_argument("--limit", type=option_types.positive, help="only the first prompts of the file")
    how.add_argument("--concurrency", type=option_types.positive, default=16)
    how.add_argument(
        "--timeout",
        type=option_types.positive_number,
        default=600.0,
        help="seconds without a word before a request is retried",
    )
    how.add_argument(
        "--retries", type=option_types.not_negative, default=5, help="attempts per response after failures"
    )
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
