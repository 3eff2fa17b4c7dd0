"""`ray up cluster/aws.yaml` by Ray's own launcher against moto's AWS; only the commands for the nodes are collected.

botocore checks each request against the definition of EC2's interface, and moto keeps what was started.
"""

import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
REGION = "us-west-2"
ANSWERS = {
    "command -v docker": "/usr/bin/docker",
    "json .Config.Env": '["HOME=/home/ray"]',
    "printenv HOME": "/home/ray",
    "/proc/meminfo": "MemAvailable: 8000000 kB",
    "{{.Runtimes}}": "map[runc:{}]",
    ".State.Running": "false",
}
"""What a node with Docker answers to the questions of the launcher."""


@contextmanager
def emulated_aws():
    """Emulate AWS in this process, and leave what the server of S3 keeps that other tests use."""
    from moto import mock_aws

    emulated = mock_aws()
    emulated.start(reset=False)
    try:
        yield
    finally:
        emulated.stop(remove_data=False)


class Shell:
    """What the launcher uses in place of `subprocess`: it notes commands, and answers for the node."""

    def __init__(self):
        self.commands = []

    def check_call(self, command, *_, **__):
        self.commands.append(" ".join(command))

    def check_output(self, command, *_, **__):
        self.check_call(command)
        return next((a for q, a in ANSWERS.items() if q in self.commands[-1]), "").encode()

    def position(self, text):
        """Return the position of the only command that contains a text."""
        [position] = [i for i, command in enumerate(self.commands) if text in command]
        return position


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Start the head as `ray up` does, and one worker as the head's autoscaler does."""
    import boto3
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.aws import node_provider
    from ray.autoscaler._private.providers import _get_node_provider

    folder = tmp_path_factory.mktemp("checkout")
    token = folder / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch, emulated_aws():
        patch.chdir(folder)
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setattr(commands, "POLL_INTERVAL", 0.1)
        patch.setattr(node_provider, "TAG_BATCH_DELAY", 0.1)
        for name, value in {"HOME": folder, "RAY_USAGE_STATS_ENABLED": 0, "AWS_PROFILE": None}.items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, str(value))
        for role in ("head", "worker"):
            boto3.client("iam", REGION).create_instance_profile(InstanceProfileName=f"maskrcnn-{role}")

        config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
        config = commands._bootstrap_config(config, no_config_cache=True)
        shell = Shell()
        commands.get_or_create_head_node(config, "aws.yaml", False, False, True, None, _runner=shell)
        provider = _get_node_provider(config["provider"], config["cluster_name"])
        worker = config["available_node_types"]["gpu_spot"]["node_config"]
        provider.create_node(worker, {"ray-node-type": "worker"}, 1)

        ec2 = boto3.client("ec2", REGION)
        found = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
        roles = {tag["Value"]: i for i in found for tag in i["Tags"] if tag["Key"] == "ray-node-type"}
        [group] = ec2.describe_security_groups(GroupNames=["ray-autoscaler-maskrcnn"])["SecurityGroups"]
        return SimpleNamespace(config=config, shell=shell, nodes=roles, group=group)


@pytest.mark.slow
def test_the_head_is_on_demand_and_workers_are_spot_nodes_each_with_its_role(launched):
    head, worker = launched.nodes["head"], launched.nodes["worker"]
    assert ("InstanceLifecycle" in head, worker["InstanceLifecycle"]) == (False, "spot")
    assert head["IamInstanceProfile"]["Arn"].endswith("/maskrcnn-head")
    assert worker["IamInstanceProfile"]["Arn"].endswith("/maskrcnn-worker")
    for node in (head, worker):
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        [disk] = node["BlockDeviceMappings"]
        assert disk["DeviceName"] == node["RootDeviceName"]


@pytest.mark.slow
def test_a_worker_has_what_the_autoscaler_believes_it_has(launched):
    """moto knows EC2's instance types: their CPUs, GPUs and memory."""
    resources = launched.config["available_node_types"]["gpu_spot"]["resources"]
    assert (resources["CPU"], resources["GPU"], resources["accelerator_type:L4"]) == (8, 1, 1)
    assert 20e9 < resources["memory"] < 32 * 2**30


@pytest.mark.slow
def test_the_world_reaches_ssh_alone(launched):
    open_ports = [
        (rule.get("FromPort"), rule.get("ToPort"))
        for rule in launched.group["IpPermissions"]
        if rule["IpRanges"] or rule["Ipv6Ranges"]
    ]
    assert open_ports == [(22, 22)]


@pytest.mark.slow
def test_the_container_starts_after_its_files_and_its_driver_and_before_its_packages(launched):
    order = ["auth_token ubuntu@", "usermod -aG docker", "nvidia-smi", "docker pull", "docker run"]
    order += ["rm -rf /tmp/source", "pip install --no-cache-dir --constraint requirements.lock"]
    order += ["ray stop", "ray start --head"]
    positions = [launched.shell.position(text) for text in order]
    assert positions == sorted(positions)


@pytest.mark.slow
def test_the_container_of_the_head_gets_the_token_and_no_port_of_its_own(launched):
    run = launched.shell.commands[launched.shell.position("docker run")]
    assert "rayproject/ray:" in run
    assert "-gpu" not in run
    assert "/home/ray/.ray/auth_token:/home/ray/.ray/auth_token" in run
    assert "--env RAY_AUTH_MODE=token" in run
    assert "--net=host" in run
    assert "--shm-size" in run


@pytest.mark.slow
def test_the_head_offers_no_cpu_and_sends_no_statistics(launched):
    start = launched.shell.commands[launched.shell.position("ray start --head")]
    assert '{"CPU":0}' in start
    assert "RAY_USAGE_STATS_ENABLED=0" in start
    assert "--autoscaling-config=/home/ray/ray_bootstrap_config.yaml" in start


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_completes_a_launcher_file_and_finds_nothing_wrong(cloud):
    """As `ray up` does before it asks the cloud: schema, node types, Docker, defaults."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    written = yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())
    config = prepare_config(written)
    validate_config(config)
    assert config["available_node_types"]["head"]["max_workers"] == 0
    assert config["head_setup_commands"] == written["setup_commands"] + written["head_setup_commands"]
    unknown = (
        set(config) - set(written) - {"cluster_synced_files", "file_mounts_sync_continuously", "rsync_filter"}
    )
    assert not unknown, "Ray's default of a field applies that the file does not mention"


def test_a_wrong_field_of_a_node_is_noticed_before_anything_starts():
    """So the tests above would fail where EC2 does not know a field."""
    import boto3
    from botocore.exceptions import ParamValidationError

    node = yaml.safe_load((CLUSTER / "aws.yaml").read_text())["available_node_types"]["head"]["node_config"]
    node["MetadataOptions"]["HttpToken"] = "required"
    with emulated_aws(), pytest.raises(ParamValidationError, match="HttpToken"):
        boto3.client("ec2", REGION).run_instances(**node, MinCount=1, MaxCount=1)
