"""Wait for the notice that this machine will be taken away, and let Ray drain its node then.

    python cluster/drain_on_notice.py aws        # or gcp

asks the machine's metadata service every five seconds. `aws.yaml` and `gcp.yaml` start it on their spot nodes. Where
Kubernetes runs Ray, it is not needed: a pod that is ended gets a SIGTERM, and Ray drains its node.
"""

import argparse
import datetime
import json
import logging
import math
import subprocess
import time
import urllib.error
import urllib.request

SERVICE = "http://169.254.169.254"
ASK_EVERY_S = 5.0
ASK_S = 2.0
GOOGLE_S = 30.0
"""The time from Google's notice to the end: https://docs.cloud.google.com/compute/docs/instances/spot"""
DRAIN = (
    *("ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
    *("--reason-message", "the cloud takes this machine away", "--deadline-remaining-seconds"),
)


def left_on_aws(service: str) -> float | None:
    """Return the seconds that are left, by EC2's notice to a spot instance; None if there is no notice.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html

    Raises:
        OSError: the service does not answer.
    """
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = {"X-aws-ec2-metadata-token": _ask(f"{service}/latest/api/token", lifetime, "PUT")}
    try:
        notice = json.loads(_ask(f"{service}/latest/meta-data/spot/instance-action", token))
    except urllib.error.HTTPError as error:
        if error.code == 404:  # as long as there is none
            return None
        raise
    end = datetime.datetime.fromisoformat(notice["time"])
    return (end - datetime.datetime.now(datetime.UTC)).total_seconds()


def left_on_gcp(service: str) -> float | None:
    """Return the seconds that are left, by Compute Engine's notice to a spot VM; None if there is no notice.

    Raises:
        OSError: the service does not answer.
    """
    said = _ask(f"{service}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GOOGLE_S if said == "TRUE" else None


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310 (http)
    with urllib.request.urlopen(request, timeout=ASK_S) as response:  # noqa: S310 (http)
        return str(response.read().decode().strip())


def main() -> None:
    """Wait for the notice, drain the node, and end."""
    parser = argparse.ArgumentParser(description="Let Ray drain this node once its cloud will take it away.")
    parser.add_argument("cloud", choices=["aws", "gcp"])
    parser.add_argument("--service", default=SERVICE, help="address of the metadata service")
    parser.add_argument("--every", type=float, default=ASK_EVERY_S, help="seconds between two questions (5)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    left_on = {"aws": left_on_aws, "gcp": left_on_gcp}[options.cloud]
    while True:
        try:
            left_s = left_on(options.service)
        except OSError as error:
            logging.warning("%s does not answer: %s", options.service, error)
            left_s = None
        if left_s is not None:
            logging.info("this machine will be taken away in %.0f s", left_s)
            command = [*DRAIN, str(max(math.floor(left_s), 0))]
            if subprocess.run(command, check=False).returncode == 0:  # noqa: S603 (fixed arguments)
                return
        time.sleep(options.every)


if __name__ == "__main__":
    main()
