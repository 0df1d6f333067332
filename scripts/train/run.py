"""Training by the flags that Megatron-VLM's users type; docs/migrate/asagi.md has the page."""

import sys

from neva.launchers.asagi import main

if __name__ == "__main__":
    sys.exit(main())
