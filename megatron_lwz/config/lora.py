"""Low-rank adapters (LoRA): which modules of the policy get one, and of which rank."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_lwz.config.base import CommaList, Section

Module = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODULES: tuple[Module, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear modules of a layer, by their names in Hugging Face's models and in peft."""


class LoraSection(Section):
    """LoRA (arXiv 2106.09685): a frozen policy, of which low-rank updates W + alpha / rank · B A of its modules are trained."""

    rank: int = Field(
        0,
        ge=0,
        le=4096,
        description="rank of the updates (LoRA, section 4.1: r); 0 = off: all weights are trained",
    )
    alpha: float = Field(
        32.0,
        gt=0,
        description="an update is alpha / rank · B A (LoRA, section 4.1); 32: peft's documentation",
    )
    modules: Annotated[tuple[Module, ...], CommaList] = Field(
        MODULES,
        min_length=1,
        description="modules that get an update, as in peft's target_modules; all of them, which QLoRA (arXiv 2305.14314, section 4) needed to reach full fine-tuning",
    )
    ranks: dict[Module, Annotated[int, Field(gt=0, le=4096)]] = Field(
        {}, description="module: its own rank, as in peft's rank_pattern"
    )
    alphas: dict[Module, Annotated[float, Field(gt=0)]] = Field(
        {}, description="module: its own alpha, as in peft's alpha_pattern"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, given in (("ranks", self.ranks), ("alphas", self.alphas)):
            if given and not self.rank:
                raise ValueError(f"{name} is given, but rank 0 turns LoRA off: set rank")
            if unknown := sorted(set(given) - set(self.modules)):
                raise ValueError(f"{name} names {unknown[0]}, which is not among modules: add it there")
        return self

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module's update; 0 for a module without one."""
        return self.ranks.get(module, self.rank) if module in self.modules else 0

    def scale_of(self, module: str) -> float:
        """Returns the factor on B A: alpha / rank, both the module's own."""
        return self.alphas.get(module, self.alpha) / self.rank_of(module)  # type: ignore[call-overload]
