"""`python -m maskrcnn_jobs …` is the command `maskrcnn …`."""

from .cli import main

if __name__ == "__main__":
    main()
