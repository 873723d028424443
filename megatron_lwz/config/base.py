"""The base classes that every section of the config is built on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Normalizer = Literal["zscore", "range", "none"]


class Section(BaseModel):
    """Base class of all sections. Sections are frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class ComponentSection(Section):
    """The settings that every reward component has."""

    weight: float = Field(
        1.0, ge=0, description="weight of the component in the average over components; paper: equal weights (B)"
    )
    normalizer: Normalizer | None = Field(
        None,
        description="normaliser of this component; null: the one of reward.normalizer; refused with reward.combine: rewards",
    )
