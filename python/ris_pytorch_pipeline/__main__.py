# SPDX-License-Identifier: Apache-2.0
"""``python -m ris_pytorch_pipeline`` is the command ``ris``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
