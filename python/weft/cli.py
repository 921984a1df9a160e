"""The command ``weft``: what is installed and runs here, a demonstration of it, and tuning."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="weft", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    doctor = commands.add_parser("doctor", help="what runs on this machine and, if not, why not")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.add_argument(
        "--limits", action="store_true", help="also measure the machine's limits (some seconds)"
    )
    commands.add_parser(
        "tune", help="measure from how many rows on W8A8 is the faster, for weft.Hybrid"
    )
    demo = commands.add_parser("demo", help="a real model, on torch and on weft")
    if arguments[:1] == ["demo"]:  # what it needs is imported only for it
        from . import demo as demonstration

        demonstration.add_arguments(demo)

    options = parser.parse_args(arguments)
    if options.command == "demo":
        return demonstration.main(options) or 0
    if options.command == "tune":
        from .quantization import crossover

        return crossover.main()

    from . import _doctor

    report = _doctor.examine(limits=options.limits)
    print(json.dumps(report, indent=2) if options.json else _doctor.as_text(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
