"""Language models that judge."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from megatron_lwz.config.base import ComponentSection, Section


class JudgeSection(Section):
    """A language model that judges texts, behind any OpenAI-compatible server."""

    url: str | None = Field(None, description="server, e.g. http://127.0.0.1:8000/v1")
    model: str = Field("", description="name that the server knows the model by")
    api: Literal["chat", "completions"] = Field(
        "chat", description="route; completions: for servers without chat, like the embedded engine"
    )
    api_key_env: str = Field("LWZ_JUDGE_KEY", description="environment variable that holds the server's key")
    temperature: float = Field(0.0, ge=0, description="an evaluation command sets its benchmark's own unless given")
    top_p: float = Field(1.0, gt=0, le=1.0)
    max_tokens: int = Field(2048, gt=0, description="tokens of one reply")
    body: dict[str, Any] = Field(
        {}, description="more keys of the request, as they are; null leaves one out, e.g. body.temperature=null"
    )
    concurrency: int = Field(16, gt=0, description="questions under way at once")
    timeout: float = Field(300.0, gt=0, description="seconds for one reply")
    retries: int = Field(5, ge=0, description="attempts per question after failures in a row")
    backoff: float = Field(0.5, gt=0, description="seconds before the first retry; doubles, at most 60 times this")
    malformed_retries: int = Field(
        2, ge=0, description="times that a reply without a readable verdict is asked for again"
    )
    max_requests: int = Field(0, ge=0, description="requests per process; 0 = no bound")
    max_total_tokens: int = Field(0, ge=0, description="prompt and reply tokens per process; 0 = no bound")
    cache: str | None = Field(
        None, description="SQLite file of replies; null: in memory (evaluation, GRPO: under the output or run folder)"
    )
    rest_after: int | None = Field(
        None,
        ge=0,
        description="failed requests in a row (no connection, timeout, 5xx, 429) after which the judge is left alone for rest_seconds; 0 = never; null: 2 × concurrency as a reward, else never",
    )
    rest_seconds: float = Field(60.0, gt=0, description="seconds in which questions then fail at once, and are counted")


class JudgeReward(ComponentSection):
    """A language model's verdict as a component, in [0, 1] (docs/rewards.md). Only the answer is shown, never the thinking."""

    kind: Literal["rubric", "checklist", "pairwise", "reference"] = Field(
        description="rubric: marks on criteria; checklist: requirements met (ACE-RL, 2509.04903); pairwise: won against others of its group (UniCreative, 2604.05517); reference: won against the row's reference text (Writing-Zero, 2506.00103)",
    )
    name: str = Field("", description="the component's name in metrics; empty: the kind")
    criteria: tuple[str, ...] = Field((), description="rubric: your own criteria, one sentence each; empty: ours")
    items: int = Field(
        12, gt=1, le=40, description="checklist: most requirements asked of the judge for a row that brings none"
    )
    opponents: int = Field(
        4, gt=0, description="pairwise: others of the group that each text meets, each in both orders; open"
    )
    failed: Literal["group", "rollout"] = Field(
        "group",
        description="what a rollout without a verdict masks: the component for its whole group, or for itself alone",
    )

    @property
    def title(self) -> str:
        """The component's name."""
        return self.name or self.kind
