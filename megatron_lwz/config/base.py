"""What every section of the config is built on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Normalizer = Literal["zscore", "range", "none"]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class ComponentSection(Section):
    """What every reward component has, whatever it measures."""

    weight: float = Field(1.0, ge=0, description="share in the average over components; paper: equal weights (B)")
    normalizer: Normalizer | None = Field(
        None, description="this component's own; null: reward.normalizer; not with reward.combine: rewards"
    )
