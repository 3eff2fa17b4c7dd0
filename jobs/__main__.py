"""The program `maskrcnn`, which is `python -m maskrcnn_jobs` too."""

from .interruption import end_on_signals


def main() -> None:
    """Run the command line, whose import takes long enough for a Ctrl-C."""
    end_on_signals()
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
