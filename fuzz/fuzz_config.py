# SPDX-License-Identifier: Apache-2.0
"""Configuration files: refused with ConfigError, or read into a configuration that is whole."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from fuzz.mutations import mutate
from fuzz.target import Choices, FindingError, fuzz

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-config-"))


def test(data: bytes) -> None:
    """The bytes are the file, or departures from a valid one."""
    from ris_pytorch_pipeline.config_io import from_dict, load_config, to_dict
    from ris_pytorch_pipeline.configs import ConfigError, ExperimentConfig

    choices = Choices(data)
    path = _FOLDER / "config.json"
    if choices.of(("mutated", "raw")) == "raw":
        path.write_bytes(choices.rest())
    else:
        path.write_text(json.dumps(mutate(to_dict(ExperimentConfig()), choices)))
    try:
        config = load_config(ExperimentConfig, path)
    except ConfigError as error:
        if not str(error):
            raise FindingError("a refusal without a word") from error
        return
    if from_dict(ExperimentConfig, to_dict(config)) != config:
        raise FindingError(f"accepted, but it does not survive being written: {config}")


if __name__ == "__main__":
    fuzz("config", test, ["ris_pytorch_pipeline.configs", "ris_pytorch_pipeline.config_io"])
