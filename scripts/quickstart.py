"""The main job on real data in one command: see `examples.quickstart`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.quickstart.run import main

if __name__ == "__main__":
    main()
