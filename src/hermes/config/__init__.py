"""Configuration: the models (`models`) and where their values come from (`load`)."""

from hermes.config.keeping import EvidenceConfig, RecordingConfig
from hermes.config.load import Loaded, load
from hermes.config.models import (
    AuthenticationConfig,
    ContainerPoolConfig,
    DockerConfig,
    ForensicsConfig,
    LimitsConfig,
    LoggingConfig,
    SecurityConfig,
    SensorConfig,
    ServerConfig,
    Settings,
)
from hermes.config.reload import Reload, reload

__all__ = [
    "AuthenticationConfig",
    "ContainerPoolConfig",
    "DockerConfig",
    "EvidenceConfig",
    "ForensicsConfig",
    "LimitsConfig",
    "Loaded",
    "LoggingConfig",
    "RecordingConfig",
    "Reload",
    "SecurityConfig",
    "SensorConfig",
    "ServerConfig",
    "Settings",
    "load",
    "reload",
]
