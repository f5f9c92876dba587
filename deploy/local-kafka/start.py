#!/usr/bin/env python3
"""Run one Apache Kafka broker in the foreground until Ctrl-C: see README.md beside this file.

Needs Python 3.11 or newer and nothing installed by pip (a Java runtime and Maven apart).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sandbox.local_kafka import main

if __name__ == "__main__":
    sys.exit(main())
