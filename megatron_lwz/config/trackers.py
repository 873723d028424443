"""The trackers that get a run's metrics besides its own files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Section, Url


class WandbSection(Section):
    """Weights & Biases. Needs the package wandb, and `wandb login` or WANDB_API_KEY unless offline."""

    use: bool = Field(False, description="send the metrics to Weights & Biases")
    project: str = Field("megatron-lwz", min_length=1, description="project of the run")
    entity: str | None = Field(None, description="user or team; null: the account's default")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: files under trackers/ of the run folder, for `wandb sync`"
    )


class TrackioSection(Section):
    """Trackio. Needs the package trackio; its files lie where trackio keeps them (TRACKIO_DIR)."""

    use: bool = Field(False, description="give the metrics to Trackio; `trackio show` shows them")
    project: str = Field("megatron-lwz", min_length=1, description="project of the run")
    space: str | None = Field(None, description="Hugging Face Space, user/name; null: this machine alone")


class MlflowSection(Section):
    """MLflow. Needs the package mlflow."""

    use: bool = Field(False, description="give the metrics to MLflow")
    experiment: str = Field("megatron-lwz", min_length=1, description="experiment of the run")
    uri: Url | None = Field(
        None, description="address of a tracking server; null: trackers/mlflow.db in the run folder"
    )
