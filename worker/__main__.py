"""`python -m worker --model DIRECTORY [--port 8100] [--controller http://...]`."""

from __future__ import annotations

import sys

from server.protocol.flags import SettingsError
from worker.serve import run
from worker.settings import read_settings


def main() -> int:
    try:
        settings = read_settings(sys.argv[1:])
    except SettingsError as error:
        print(f"The worker cannot start: {error}", file=sys.stderr)
        return 1
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
