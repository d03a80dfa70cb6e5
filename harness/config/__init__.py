"""The one schema that YAML, the workflow, the command line and the docs are checked against.

How a study file becomes runs of this schema is :mod:`harness.config.resolve`. Nothing here imports torch: the
Snakefile loads this package, and every Slurm job parses the Snakefile again.
"""

from harness.config.models import (
    FEATURE_ITEMS,
    FeatureConfig,
    LanguageConfig,
    ModelsConfig,
    PretrainConfig,
    SamConfig,
    VisionConfig,
)
from harness.config.names import ConfigError, checked_name, study_name
from harness.config.recipe import ProtocolConfig, SuperpixelConfig, TrainingConfig, TuningConfig
from harness.config.study import BLOCKS, SHARE, Budget, Row, RunConfig, StudyConfig

__all__ = [
    "BLOCKS",
    "FEATURE_ITEMS",
    "SHARE",
    "Budget",
    "ConfigError",
    "FeatureConfig",
    "LanguageConfig",
    "ModelsConfig",
    "PretrainConfig",
    "ProtocolConfig",
    "Row",
    "RunConfig",
    "SamConfig",
    "StudyConfig",
    "SuperpixelConfig",
    "TrainingConfig",
    "TuningConfig",
    "VisionConfig",
    "checked_name",
    "study_name",
]
