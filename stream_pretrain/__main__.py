"""`python -m stream_pretrain`: what launchers such as torchrun start."""

import sys

from stream_pretrain.cli import main

sys.exit(main())
