"""All sections, from the modules of this package: each setting once, with its type, default, unit and source.

A letter after a source is its grade, from A (primary artefact) to D (derived). "Open" marks what the paper does not
specify. The default there is our choice (docs/recipe.md explains it).
"""

from __future__ import annotations

from megatron_lwz.config.base import ComponentSection, Fraction, Section
from megatron_lwz.config.data import DataSection
from megatron_lwz.config.dpo import DpoSection
from megatron_lwz.config.embedding import DiversityReward, EmbeddingSection, OverlapReward
from megatron_lwz.config.evaluation import EvaluationSection
from megatron_lwz.config.format import ConsistencyReward, FormatReward, StructureReward
from megatron_lwz.config.grpo import GrpoSection, TeacherServer
from megatron_lwz.config.judge import JudgeReward, JudgeSection
from megatron_lwz.config.launch import LaunchSection
from megatron_lwz.config.lora import LoraSection
from megatron_lwz.config.model import Architecture, KernelsSection, ModelSection, ParallelSection
from megatron_lwz.config.reward import FunctionReward, LengthReward, RewardSection
from megatron_lwz.config.reward_model import ContinuationReward, RewardModelSection, WritingReward
from megatron_lwz.config.rollout import RolloutSection
from megatron_lwz.config.training import (
    CheckpointSection,
    LoggingSection,
    OptimizerSection,
    RunSection,
    SftSection,
    TrainingSection,
)
from megatron_lwz.config.weight_sync import WeightSyncSection

__all__ = [
    "Architecture",
    "CheckpointSection",
    "ComponentSection",
    "ConsistencyReward",
    "ContinuationReward",
    "DataSection",
    "DiversityReward",
    "DpoSection",
    "EmbeddingSection",
    "EvaluationSection",
    "FormatReward",
    "Fraction",
    "FunctionReward",
    "GrpoSection",
    "JudgeReward",
    "JudgeSection",
    "KernelsSection",
    "LaunchSection",
    "LengthReward",
    "LoggingSection",
    "LoraSection",
    "ModelSection",
    "OptimizerSection",
    "OverlapReward",
    "ParallelSection",
    "RewardModelSection",
    "RewardSection",
    "RolloutSection",
    "RunSection",
    "Section",
    "SftSection",
    "StructureReward",
    "TeacherServer",
    "TrainingSection",
    "WeightSyncSection",
    "WritingReward",
]
