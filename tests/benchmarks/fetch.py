"""`maskrcnn bench --only fetch` on a real S3 server that is started for it: SeaweedFS, on this machine.

    python -m tests.benchmarks.fetch [--objects 500] [--repeats 5]

The server takes the same cores as the clients, so that the ratio is a lower bound of what a distant one shows.
"""

import argparse
import signal
import tempfile
from pathlib import Path

from s3_servers import S3Server, free_port, start_weed

from maskrcnn.io.storage import Storage

from .inputs import COCO_SIZE, write_photos
from .run import run_bench

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port(10_000)
        process = start_weed(Path(folder) / "data", port)
        server = S3Server(f"http://127.0.0.1:{port}")
        try:
            with server.environment():
                prefix = server.prefix()
                storage = Storage(prefix)
                photos = write_photos(Path(folder) / "photos", 20, COCO_SIZE)
                for number in range(options.objects):
                    storage.put_file(f"{number:05d}.jpg", photos[number % len(photos)])
                run_bench(
                    "fetch", None, images=None, model=None, s3=prefix, repeats=options.repeats, quick=False
                )
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
