"""Language models that judge texts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_lwz.config.base import Body, ComponentSection, OneOrList, Section, Url, UserPath, Variable


class JudgeSection(Section):
    """A language model that judges texts. It runs behind any OpenAI-compatible server."""

    url: Url | None = Field(None, description="URL of the server, e.g. http://127.0.0.1:8000/v1")
    model: str = Field("", description="model name sent to the server")
    api: Literal["chat", "completions"] = Field(
        "chat", description="API route; completions: for servers without chat, like the embedded engine"
    )
    api_key_env: Variable = Field("LWZ_JUDGE_KEY", description="environment variable with the server's API key")
    temperature: float = Field(
        0.0,
        ge=0,
        description="sampling temperature; an evaluation command uses its benchmark's temperature unless this is set",
    )
    top_p: float = Field(1.0, gt=0, le=1.0, description="nucleus sampling of the judge")
    max_tokens: int = Field(2048, gt=0, description="maximum tokens of one reply")
    body: Body = Field(
        {}, description="additional keys of the request, sent unchanged; null removes a key, e.g. body.temperature=null"
    )
    concurrency: int = Field(16, gt=0, description="maximum number of concurrent requests")
    timeout: float = Field(300.0, gt=0, description="seconds to wait for one reply")
    retries: int = Field(5, ge=0, description="maximum retries of a question after consecutive failures")
    backoff: float = Field(
        0.5,
        gt=0,
        description="seconds before the first retry; doubles with each further retry, up to 60 times this value",
    )
    malformed_retries: int = Field(
        2, ge=0, description="how often a question is asked again when its reply has no readable verdict"
    )
    max_requests: int = Field(0, ge=0, description="maximum requests per process; 0 = no limit")
    max_total_tokens: int = Field(0, ge=0, description="maximum prompt and reply tokens per process; 0 = no limit")
    cache: UserPath | None = Field(
        None,
        description="SQLite file that stores the replies; null: in memory (evaluation, GRPO: under the output or run folder)",
    )
    rest_after: int | None = Field(
        None,
        ge=0,
        description="after this many consecutive failed requests (no connection, timeout, 5xx, 429), no request is sent for rest_seconds; 0 = never; null: 2 × concurrency for a reward, otherwise never",
    )
    rest_seconds: float = Field(
        60.0,
        gt=0,
        description="length of this pause in seconds; questions during the pause fail at once and are counted",
    )


class JudgeReward(ComponentSection):
    """A reward component in [0, 1] from a language model's verdict (docs/rewards.md).

    The judge sees the answer only, never the think segment.
    """

    kind: Literal["rubric", "criteria", "checklist", "pairwise", "reference"] = Field(
        description="rubric: marks on criteria; criteria: marks on criteria that the judge writes for each prompt once (query-specific, UniCreative, 2604.05517), or on the row's; checklist: share of requirements met (ACE-RL, 2509.04903); pairwise: comparisons won against other rollouts of the group (UniCreative, 2604.05517); reference: comparisons won against the row's reference text (Writing-Zero, 2506.00103)",
    )
    name: str = Field("", description="the component's name in metrics; empty: the kind")
    criteria: Annotated[tuple[str, ...], OneOrList] = Field(
        (), description="rubric: custom criteria, one sentence each; empty: the built-in ones"
    )
    number: int = Field(
        5,
        gt=1,
        le=12,
        description="criteria: how many criteria the judge writes for a prompt (WritingBench, 2503.05244, has 5); open",
    )
    rounds: int = Field(
        0,
        ge=0,
        le=50,
        description="criteria: how often those that all rollouts of a group meet are replaced by harder ones for the prompt's later groups (a rubric curriculum, after RcRL, ICML 2026); 0 = never",
    )
    met: float = Field(
        8.0,
        gt=1,
        le=10,
        description="criteria, with rounds above 0: mark, from 1 to 10, from which a criterion counts as met; open",
    )
    items: int = Field(
        12,
        gt=1,
        le=40,
        description="checklist: maximum number of requirements that the judge writes for a row without a checklist",
    )
    opponents: int = Field(
        4,
        gt=0,
        description="pairwise: other rollouts of the group that each text is compared with, each in both orders; open",
    )
    own_criteria: bool = Field(
        False,
        description="pairwise: compare by criteria that the judge writes for the prompt once, or by the row's, as kind criteria does (UniCreative, 2604.05517); `number` is how many",
    )
    failed: Literal["group", "rollout"] = Field(
        "group",
        description="what is masked when a rollout has no verdict: group: the component for the whole group; rollout: for this rollout only",
    )

    @property
    def title(self) -> str:
        """The component's name."""
        return self.name or self.kind
