"""The main job on real data in one command: see `neva.quickstart`."""

from neva.quickstart.run import main

if __name__ == "__main__":
    main()
