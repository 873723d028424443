"""The held-out evaluation of a training run: the engines that generate its rollouts, and its metrics (rank 0)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment
from megatron_lwz.errors import EngineError
from megatron_lwz.evaluation import longbench_write
from megatron_lwz.evaluation.in_loop import EvaluationEngines, InLoopEvaluation, Metrics
from megatron_lwz.evaluation.journaled import responses_of
from megatron_lwz.evaluation.measure import measure
from megatron_lwz.orchestrator.engines import START_SECONDS, EmbeddedEngine, make_pool
from megatron_lwz.orchestrator.experience import rollout_metrics
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rollout.held_out import HeldOut
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import Group, Prompt, WeightVersion

log = logging.getLogger(__name__)

_MEASURED = ("s_l", "distinct_1", "distinct_2", "distinct_4", "language_consistent", "empty")
"""The measures without a judge that the rewards' `details` do not already contain."""


def in_loop_evaluation(
    config: Config, run: RunPaths, held_out: HeldOut, prompts: Sequence[Prompt], training: EnginePool
) -> InLoopEvaluation:
    """Creates the evaluations on `prompts`.

    They run beside training on separate engines, or on the `training` engines while training waits.
    """

    async def metrics_of(groups: Sequence[Group]) -> Metrics:
        names = list(groups[0].scores[0]) if groups and groups[0].scores else []
        return await held_out_metrics(groups, names, config, run.judge_cache)

    section = config.evaluation
    return InLoopEvaluation(
        run.root,
        held_out,
        _engines(config, run, training),
        metrics_of,
        prompts=prompts,
        samples=section.samples,
        most_begun=section.most_begun,
    )


async def held_out_metrics(groups: Sequence[Group], names: Sequence[str], config: Config, judge_cache: Path) -> Metrics:
    """Returns the metrics of an evaluation.

    `eval/…`: reward metrics; `eval/text/…`: measures of the texts without a judge; `eval/quality/…`: the judge's
    ratings. Every reply of the judge is kept in `judge_cache`. If the judge fails, its ratings are missing and are
    counted.
    """
    metrics = {f"eval/{name}": value for name, value in rollout_metrics(groups, names).items()}
    responses = responses_of(groups)
    measured = measure(responses, config.reward.format).metrics
    metrics |= {f"eval/text/{name}": measured[name].value for name in _MEASURED if name in measured}
    if config.evaluation.quality:
        section = config.judge.model_copy(update={"cache": config.judge.cache or str(judge_cache)})
        try:
            async with Judge(section) as judge:
                judged = await longbench_write.evaluate(responses, judge)
        except EngineError as error:
            log.warning("the held-out answers are not rated: %s", error)
            return metrics | {"eval/quality/unjudged": float(len(responses))}
        rated = {name: judged.metrics[name].value for name in longbench_write.RATED if name in judged.metrics}
        metrics |= {f"eval/quality/{name}": value for name, value in rated.items()}
        metrics["eval/quality/unjudged"] = float(judged.unjudged)
    return metrics


def _engines(config: Config, run: RunPaths, training: EnginePool) -> EvaluationEngines:
    if not config.evaluation.concurrent:
        return TrainingEngines(training)
    return RunningEngines(config) if config.evaluation.urls else OwnEngine(config, run)


class TrainingEngines:
    """The engines of the training rollouts. They have the weights already, because training waits."""

    keeps_weights = False

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool

    def serve(self, version: WeightVersion, weights: Path | None) -> EnginePool:
        """Returns a pool of the same engines for another event loop."""
        return self._pool.twin()

    def close(self) -> None:
        """Does nothing, because nothing was started."""


class RunningEngines:
    """Engines of `evaluation.urls`, started by somebody else for evaluation only.

    They must be able to read the run folder.
    """

    keeps_weights = True

    def __init__(self, config: Config) -> None:
        self._config = config

    def serve(self, version: WeightVersion, weights: Path | None) -> EnginePool:
        """Makes the engines load the weights. Raises EngineError."""
        assert weights is not None
        token = environment.get(self._config.rollout.api_key_env)
        pool = make_pool(self._config, self._config.evaluation.urls, token)
        pool.push_weights(weights, version)
        return pool

    def close(self) -> None:
        """Does nothing: the engines keep running."""


class OwnEngine:
    """One embedded engine, which the run starts for the first evaluation and keeps."""

    keeps_weights = True

    def __init__(self, config: Config, run: RunPaths) -> None:
        self._config = config
        self._log = run.evaluation_engine_log
        self._lock = threading.Lock()
        self._engine: EmbeddedEngine | None = None
        self._closed = False

    def serve(self, version: WeightVersion, weights: Path | None) -> EnginePool:
        """Makes the engine load the weights, and starts it if it does not run. Raises EngineError."""
        assert weights is not None
        engine = self._running(weights)
        pool = engine.pool()
        pool.push_weights(weights, version)
        for checksum in pool.weight_checksum().values():
            if checksum != version.checksum:
                advice = f"runs weights with checksum {checksum}, those of step {version.step} have {version.checksum}"
                raise EngineError(engine.server.url, advice)
        return pool

    def close(self) -> None:
        """Stops the engine."""
        with self._lock:
            self._closed = True
            if self._engine is not None:
                self._engine.stop()

    def _running(self, weights: Path) -> EmbeddedEngine:
        with self._lock:
            engine = self._engine
            if engine is not None and engine.server.alive():
                return engine
            threads = self._config.evaluation.engine_threads or self._config.rollout.engine_threads
            self._engine = engine = EmbeddedEngine(self._config, weights, threads=threads, log_path=self._log)
            if self._closed:
                raise EngineError(engine.server.url, "the run ends")
            engine.server.start()
        engine.server.wait_ready(START_SECONDS)
        return engine
