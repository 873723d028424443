"""The public Python API for type checkers: what `__init__.py` imports when it is used."""

from megatron_lwz.algorithms.grpo import (
    LossInputs as LossInputs,
)
from megatron_lwz.algorithms.grpo import (
    average_metrics as average_metrics,
)
from megatron_lwz.algorithms.grpo import (
    grpo_loss as grpo_loss,
)
from megatron_lwz.config import Config as Config
from megatron_lwz.config import load_config as load_config
from megatron_lwz.config import validate as validate
from megatron_lwz.data.prompts import read_prompts as read_prompts
from megatron_lwz.data.text.grammar import parse_response as parse_response
from megatron_lwz.data.text.length import count_units as count_units
from megatron_lwz.data.tokenizer import Tokenizer as Tokenizer
from megatron_lwz.errors import ConfigError as ConfigError
from megatron_lwz.errors import DataError as DataError
from megatron_lwz.errors import LwzError as LwzError
from megatron_lwz.kernels.dispatch import set_backend as set_backend
from megatron_lwz.kernels.linear_logprob import linear_logprob as linear_logprob
from megatron_lwz.metrics import read_metrics as read_metrics
from megatron_lwz.orchestrator.experience import Advantages as Advantages
from megatron_lwz.orchestrator.experience import advantages_of as advantages_of
from megatron_lwz.report.build import build_report as build_report
from megatron_lwz.rewards.composite import build_rewards as build_rewards
from megatron_lwz.rewards.length import length_reward as length_reward
from megatron_lwz.rollout.drafts import Draft as Draft
from megatron_lwz.rollout.drafts import GroupDraft as GroupDraft
from megatron_lwz.rollout.journal import Journal as Journal
from megatron_lwz.rollout.journal_reader import JournalReader as JournalReader
from megatron_lwz.types import (
    ComponentScore as ComponentScore,
)
from megatron_lwz.types import (
    FinishReason as FinishReason,
)
from megatron_lwz.types import (
    Group as Group,
)
from megatron_lwz.types import (
    LengthRange as LengthRange,
)
from megatron_lwz.types import (
    Prompt as Prompt,
)
from megatron_lwz.types import (
    RewardColumns as RewardColumns,
)
from megatron_lwz.types import (
    Rollout as Rollout,
)
from megatron_lwz.types import (
    TokenDelta as TokenDelta,
)
from megatron_lwz.types import (
    WeightVersion as WeightVersion,
)

__version__: str
