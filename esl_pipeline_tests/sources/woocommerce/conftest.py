"""The world of the stages: a fresh buffer and a label server."""

from esl_pipeline_tests.stages.conftest import label_server, world

__all__ = ["label_server", "world"]
