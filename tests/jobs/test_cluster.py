"""The files that start clusters: valid by their owners' schemas, closed to strangers, and in step with the project."""

import datetime
import http.server
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"]
GUIDE = ROOT / "docs" / "guides" / "cluster.md"
FILES = [*LAUNCHERS, CLUSTER / "rayjob.yaml", CLUSTER / "Dockerfile", GUIDE]
launcher = pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def loaded(path):
    return yaml.safe_load(path.read_text())


def pinned(package):
    return re.search(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[1]


# The cluster launcher


@launcher
def test_a_launcher_file_is_valid_by_the_schema_that_ray_ships(path):
    ray = Path(importlib.util.find_spec("ray").origin).parent
    schema = json.loads((ray / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(loaded(path), schema)


@launcher
def test_a_launcher_starts_gpu_spot_nodes_from_none(path):
    config = loaded(path)
    nodes = config["available_node_types"]
    head = nodes.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    for node in nodes.values():
        assert node["min_workers"] == 0
        assert 0 < node["max_workers"] <= config["max_workers"]
        assert node["resources"]["GPU"] == 1
        assert is_spot(node["node_config"])
    assert not is_spot(head["node_config"]), "with the head the whole cluster would be reclaimed"


def is_spot(node):
    """Whether a node is reclaimed; on both clouds it is then removed, and not stopped."""
    aws, gcp = node.get("InstanceMarketOptions", {}), node.get("scheduling", {})
    if gcp:
        assert gcp["instanceTerminationAction"] == "DELETE"
        assert not {"preemptible", "automaticRestart"} & {
            name for name, value in gcp.items() if value is True
        }
    assert aws.get("SpotOptions", {}).get("InstanceInterruptionBehavior", "terminate") == "terminate"
    return (aws.get("MarketType"), gcp.get("provisioningModel")) in (("spot", None), (None, "SPOT"))


def test_the_disks_of_google_are_of_a_type_that_gpu_nodes_take_in_the_zone_of_the_nodes():
    """G2 does not take `pd-standard`, the default."""
    config = loaded(CLUSTER / "gcp.yaml")
    for node in config["available_node_types"].values():
        for disk in node["node_config"]["disks"]:
            zone, kind = re.fullmatch(
                r"zones/(.+)/diskTypes/(.+)", disk["initializeParams"]["diskType"]
            ).groups()
            assert zone == config["provider"]["availability_zone"]
            assert kind in ("pd-balanced", "pd-ssd")


def shell(command, folder):
    """Run a setup command below a folder instead of `/`, with a `pip` that notes what it would install."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "pip").write_text('#!/bin/sh\npwd; ls; echo "$@"\n')
    (folder / "bin" / "pip").chmod(0o755)
    command = re.sub("/home/ray|/tmp/source", lambda place: f"{folder}{place[0]}", command)
    path = f"{folder}/bin:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command], env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout


@launcher
def test_a_second_setup_installs_the_sources_of_the_second(path, tmp_path):
    source = tmp_path / "home" / "ray" / "maskrcnn-ray"
    source.mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    for version, name in enumerate(("removed.py", "added.py")):
        for file in source.iterdir():
            file.unlink()
        (source / name).write_text("")
        (source / "version").write_text(str(version))
        said = [shell(command, tmp_path) for command in loaded(path)["setup_commands"]][-1]
        assert said.split()[1:3] == [name, "version"]
        assert (tmp_path / "tmp" / "source" / "version").read_text() == str(version)


@launcher
def test_every_extra_that_a_command_needs_is_installed(path):
    setup = " ".join(loaded(path)["setup_commands"])
    extras = set(re.search(r"'\.\[([a-z,]+)\]'", setup)[1].split(","))
    assert extras == {"convert", "geo", "train"} | ({"gcs"} if path.stem == "gcp" else set())
    image = re.search(r"chosen = \(([^)]*)\)", (CLUSTER / "Dockerfile").read_text())[1]
    assert set(re.findall(r"'(\w+)'", image)) == {*"azure convert gcs geo heif hf jxl train".split()}


@launcher
def test_a_node_waits_for_its_driver_and_logs_in_anew_before_docker_is_used(path, tmp_path):
    groups, driver = loaded(path)["initialization_commands"]
    assert re.fullmatch(r"sudo usermod -aG docker \$USER && sleep (1[1-9]|[2-9]\d)", groups), (
        "ControlPersist is 10 s"
    )
    driver = driver.replace("/sys/bus/pci/devices", str(tmp_path / "pci"))
    assert shell(driver, tmp_path) == "", "no GPU, no waiting"
    (tmp_path / "pci" / "0000:00:1e.0").mkdir(parents=True)
    (tmp_path / "pci" / "0000:00:1e.0" / "vendor").write_text("0x10de\n")
    answers = tmp_path / "bin" / "nvidia-smi"
    answers.write_text("#!/bin/sh\necho L4\n")
    answers.chmod(0o755)
    assert shell(driver, tmp_path) == "L4\n"


@launcher
def test_what_an_earlier_build_left_is_not_installed_again(path):
    assert {"build", "*.egg-info"} <= set(loaded(path)["rsync_exclude"])


@launcher
def test_every_node_of_a_launcher_asks_for_the_token(path):
    config = loaded(path)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


@launcher
def test_the_dashboard_of_a_launcher_listens_to_its_own_machine_alone(path):
    config = loaded(path)
    starts = {
        group: [
            shlex.split(command)
            for command in config[f"{group}_start_ray_commands"]
            if "ray start" in command
        ]
        for group in ("head", "worker")
    }
    [head], [worker] = starts["head"], starts["worker"]
    assert "--dashboard-host=127.0.0.1" in head
    assert not [
        word for word in (*head, *worker) if word.startswith("--dashboard") and "127.0.0.1" not in word
    ]
    assert not [
        word for word in (*head, *worker) if word.startswith(("--ray-client-server-port", "--node-ip"))
    ]


@launcher
def test_what_a_launcher_copies_and_leaves_out_is_there(path):
    config = loaded(path)
    setup = " ".join(config["setup_commands"])
    assert "/home/ray/maskrcnn-ray" in config["file_mounts"]
    assert "requirements.lock" in setup
    assert not {"maskrcnn", "jobs", "pyproject.toml", "requirements.lock"} & set(config["rsync_exclude"])


NOTICES = {
    "aws": ("/latest/meta-data/spot/instance-action", '{"action": "terminate", "time": "%s"}'),
    "gcp": ("/computeMetadata/v1/instance/preempted", "TRUE"),
}


class MetadataService(http.server.BaseHTTPRequestHandler):
    """Of both clouds: each wants a header, so that none asks by accident; the notice comes with the third question."""

    asked = 0

    def log_message(self, *_):
        pass

    def do_PUT(self):
        self.answer("secret" if "X-aws-ec2-metadata-token-ttl-seconds" in self.headers else None, 400)

    def do_GET(self):
        type(self).asked += 1
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=120)
        cloud = next(name for name, (path, _) in NOTICES.items() if path == self.path)
        if cloud == "aws" and self.headers["X-aws-ec2-metadata-token"] != "secret":
            self.answer(None, 401)
        elif cloud == "gcp" and self.headers["Metadata-Flavor"] != "Google":
            self.answer(None, 403)
        elif self.asked < 3:
            self.answer("FALSE" if cloud == "gcp" else None, 404)
        else:
            text = NOTICES[cloud][1]
            self.answer(text % end.strftime("%Y-%m-%dT%H:%M:%SZ") if "%s" in text else text)

    def answer(self, text, failure=500):
        self.send_response(failure if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())


@launcher
def test_a_spot_node_is_drained_once_its_cloud_gives_notice(path, tmp_path):
    """By the command of the file, with a fake of the metadata service, and a `ray` that fails the first time."""
    [command] = [one for one in loaded(path)["worker_start_ray_commands"] if "drain_on_notice" in one]
    assert not [one for one in loaded(path)["head_start_ray_commands"] if "drain_on_notice" in one]
    words = shlex.split(command.partition("<")[0])
    assert words[:3] == ["setsid", "nohup", "python"]
    assert words[3].removeprefix("/home/ray/maskrcnn-ray/") == "cluster/drain_on_notice.py"
    (tmp_path / "ray").write_text(
        '#!/bin/sh\necho "$(printf "%s;" "$@")" >> calls\n[ "$(wc -l < calls)" = 2 ]\n'
    )
    (tmp_path / "ray").chmod(0o755)
    handler = type("Service", (MetadataService,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{service.server_address[1]}"
        run = subprocess.run(
            [
                *(sys.executable, str(CLUSTER / "drain_on_notice.py"), *words[4:]),
                *("--service", address, "--every", "0.01"),
            ],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        service.shutdown()
    assert run.returncode == 0, run.stderr
    calls = [line.removesuffix(";").split(";") for line in (tmp_path / "calls").read_text().splitlines()]
    assert len(calls) == 2
    assert handler.asked == 4
    from ray.scripts.scripts import cli

    for command, *options in calls:
        context = cli.commands[command].make_context(command, options)  # refuses what Ray does not know
        assert context.params["node_id"] is None, "this node"
        assert 20 <= context.params["deadline_remaining_seconds"] <= 120


def test_a_metadata_service_that_does_not_answer_is_asked_again(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, str(CLUSTER / "drain_on_notice.py"), "aws", "--service", address]
        with subprocess.Popen([*command, "--every", "0.01"], stderr=subprocess.PIPE, text=True) as process:
            lines = [process.stderr.readline() for _ in range(2)]
            process.kill()
    assert all("does not answer: " in line for line in lines)


# Kubernetes


def fields(required, optional):
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


ANY, TEXT, FLAG, COUNT = {}, {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
PARAMS = {"type": "object", "additionalProperties": TEXT}  # "0", not 0: KubeRay takes strings
QUANTITIES = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?([KMGT]i|m)?$"},
}
SECURITY = fields(
    {"allowPrivilegeEscalation": FLAG, "capabilities": fields({"drop": {"type": "array"}}, {})}, {}
)
CONTAINER = fields(
    {"name": TEXT, "image": TEXT, "resources": fields({"requests": QUANTITIES, "limits": QUANTITIES}, {})},
    {"securityContext": SECURITY, "envFrom": ANY, "volumeMounts": ANY, "imagePullPolicy": TEXT}
    | {"env": {"type": "array", "items": fields({"name": TEXT, "value": TEXT}, {})}}
    | {"ports": {"type": "array", "items": fields({"containerPort": COUNT}, {"name": TEXT})}},
)
POD_SECURITY = fields(
    {
        "runAsNonRoot": FLAG,
        "runAsUser": COUNT,
        "fsGroup": COUNT,
        "seccompProfile": fields({"type": TEXT}, {}),
    },
    {},
)
POD_SPEC = fields(
    {"containers": {"type": "array", "items": CONTAINER}, "serviceAccountName": TEXT},
    # No `restartPolicy`: with version 2 of the autoscaler KubeRay refuses any but its own.
    {"securityContext": POD_SECURITY, "nodeSelector": PARAMS, "affinity": ANY, "volumes": ANY}
    | {"terminationGracePeriodSeconds": COUNT}
    | {
        "tolerations": {"type": "array", "items": fields({"key": TEXT, "operator": TEXT, "effect": TEXT}, {})}
    },
)
POD = fields({"spec": POD_SPEC}, {"metadata": fields({}, {"annotations": PARAMS, "labels": PARAMS})})
WORKERS = fields(
    {
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": PARAMS,
    }
    | {"template": POD},
    {"numOfHosts": COUNT, "idleTimeoutSeconds": COUNT, "resources": ANY, "labels": ANY, "priority": ANY}
    | {"scaleStrategy": ANY, "suspend": FLAG},
)
HEAD = fields(
    {"rayStartParams": PARAMS, "template": POD},
    {"serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, "headService": ANY, "labels": PARAMS}
    | {"enableIngress": FLAG, "ingressOptions": ANY, "resources": PARAMS},
)
AUTOSCALER = fields(
    {},
    {
        "version": {"enum": ["v1", "v2"]},
        "idleTimeoutSeconds": COUNT,
        "securityContext": SECURITY,
        "image": TEXT,
    }
    | {"upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]}, "resources": ANY, "env": ANY}
    | {"envFrom": ANY, "volumeMounts": ANY, "command": ANY, "args": ANY, "imagePullPolicy": TEXT},
)
AUTH = fields({"mode": {"enum": ["token", "disabled"]}}, {"secretName": TEXT, "enableK8sTokenAuth": FLAG})
RAY_CLUSTER = fields(
    {"rayVersion": TEXT, "headGroupSpec": HEAD, "workerGroupSpecs": {"type": "array", "items": WORKERS}}
    | {"authOptions": AUTH},
    {
        "suspend": FLAG,
        "managedBy": TEXT,
        "headServiceAnnotations": PARAMS,
        "autoscalerOptions": AUTOSCALER,
        "enableInTreeAutoscaling": FLAG,
        "gcsFaultToleranceOptions": ANY,
        "tlsOptions": ANY,
    }
    | {"networkPolicy": ANY, "upgradeStrategy": ANY, "historyServerOptions": ANY},
)
RAY_JOB = fields(
    {"entrypoint": TEXT, "rayClusterSpec": RAY_CLUSTER},
    {"activeDeadlineSeconds": COUNT, "backoffLimit": COUNT, "clusterSelector": ANY, "deletionStrategy": ANY}
    | {"entrypointNumCpus": ANY, "entrypointNumGpus": ANY, "entrypointResources": TEXT, "jobId": TEXT}
    | {"managedBy": TEXT, "metadata": ANY, "runtimeEnvYAML": TEXT}
    | {"preRunningDeadlineSeconds": {"type": "integer", "minimum": 1}}
    | {"shutdownAfterJobFinishes": FLAG, "submitterConfig": ANY, "submitterPodTemplate": ANY, "suspend": FLAG}
    | {"submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]}}
    | {"ttlSecondsAfterFinished": COUNT},
)
"""The fields of KubeRay's custom resources, ray.io/v1, by its reference for 1.7, and those of pods that are used here:
https://docs.ray.io/en/master/cluster/kubernetes/references/api.html"""


@pytest.fixture
def rayjob():
    return loaded(CLUSTER / "rayjob.yaml")


def test_the_rayjob_has_the_fields_that_kuberay_knows(rayjob):
    kind = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": "RayJob"}}
    jsonschema.validate(rayjob, fields(kind | {"metadata": ANY, "spec": RAY_JOB}, {}))


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (["workerGroupSpecs", 0], "minReplica", 1),
        (["headGroupSpec"], "serviceTyp", "ClusterIP"),
        (["autoscalerOptions"], "version", 2),
        (["workerGroupSpecs", 0, "rayStartParams"], "num-cpus", 0),
        (["workerGroupSpecs", 0, "template", "spec"], "restartPolicy", "Always"),
        (
            ["workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits"],
            "memory",
            "24GB",
        ),
    ],
)
def test_the_schema_of_the_rayjob_refuses_what_kuberay_would_drop_or_refuse(rayjob, place, name, value):
    at = rayjob["spec"]["rayClusterSpec"]
    for step in place:
        at = at[step]
    at[name] = value
    with pytest.raises(jsonschema.ValidationError, match=str(value)):
        jsonschema.validate(rayjob["spec"], RAY_JOB)


def test_a_lost_pod_is_replaced_by_the_autoscaler_and_not_restarted(rayjob):
    """KubeRay sets `restartPolicy: Never` where version 2 of the autoscaler is named, and only there."""
    assert rayjob["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize(
    ("codes", "attempts", "ends"),
    [
        ([0], 3, 0),
        ([1], 3, 1),
        ([2], 3, 2),
        ([3, 3, 0], 3, 0),
        ([3, 137, 1], 3, 1),
        ([3, 3, 3], 3, 3),
        ([137], 1, 137),
        ([3, 2], 3, 2),
    ],
)
def test_another_attempt_is_made_only_where_it_can_help(codes, attempts, ends, tmp_path):
    """1 is complete, with failures; 2 is a wrong command: KubeRay's own retries do not distinguish them."""
    fake = tmp_path / "maskrcnn"
    fake.write_text(
        '#!/bin/sh\necho "$@" >> calls\n'
        f"exit $(echo {' '.join(map(str, codes))} | cut -d' ' -f$(wc -l < calls))\n"
    )
    fake.chmod(0o755)
    script = ["sh", str(CLUSTER / "attempts.sh"), str(attempts), "segment", "a b", "out"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PAUSE_S": "0"}
    assert subprocess.run(script, cwd=tmp_path, env=environment, check=False).returncode == ends
    assert (tmp_path / "calls").read_text() == "segment a b out\n" * len(codes)


def test_the_head_of_the_rayjob_is_neither_on_a_spot_node_nor_moved(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    head, [workers] = cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"]
    assert head["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    assert workers["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
    assert head["metadata"]["annotations"] == {
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }


DRAIN_TIMEOUT = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def test_a_worker_of_the_rayjob_announces_an_end_that_kubernetes_waits_for(rayjob):
    """Ray needs some seconds to end its processes, before Kubernetes kills them; a spot node has two minutes."""
    from ray._private import ray_constants

    assert hasattr(ray_constants, DRAIN_TIMEOUT), "Ray reads the variable of this name"
    [workers] = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    [container] = pod["containers"]
    [announced] = [int(one["value"]) for one in container["env"] if one["name"] == DRAIN_TIMEOUT]
    assert announced + 10 <= pod["terminationGracePeriodSeconds"] <= 110


def test_the_rayjob_leaves_its_attempts_to_the_script_and_nothing_behind(rayjob):
    spec = rayjob["spec"]
    assert spec["entrypoint"].startswith("attempts.sh 3 segment ")
    assert spec["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0


def test_the_rayjob_scales_gpu_workers_from_none_and_asks_for_the_token(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [workers] = cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"]) == (0, 0)
    [container] = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_no_pod_of_the_rayjob_is_reached_from_outside_or_holds_a_secret(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "runtimeEnvYAML" not in rayjob["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert not {"dashboard-host", "node-ip-address"} & set(group["rayStartParams"])
        pod = group["template"]["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["serviceAccountName"]
        for container in pod["containers"]:
            assert "envFrom" not in container
            assert {one["name"] for one in container.get("env", [])} <= {DRAIN_TIMEOUT}
            assert not [port for port in container.get("ports", []) if "hostPort" in port]


def test_no_pod_of_the_rayjob_is_root(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert all(c["securityContext"]["allowPrivilegeEscalation"] is False for c in pod["containers"])
    assert cluster["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False


# Docker


def test_the_image_is_pinned_and_its_user_is_not_root():
    lines = [line.split() for line in (CLUSTER / "Dockerfile").read_text().splitlines() if line.strip()]
    assert ["ARG", f"RAY_TAG={pinned('ray')}-py311-gpu"] in lines
    assert ["FROM", "rayproject/ray:${RAY_TAG}"] in lines
    assert [words[1] for words in lines if words[0] == "USER"] == ["1000"]
    assert "--constraint requirements.lock" in (CLUSTER / "Dockerfile").read_text()


def test_the_folder_that_pip_builds_in_is_made_by_the_user_of_the_image():
    """Builders differ in whom a WORKDIR that does not exist belongs to; `pip install .` writes into it."""
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    made = lines.index("RUN mkdir /home/ray/maskrcnn-ray")
    assert made < lines.index("WORKDIR /home/ray/maskrcnn-ray")
    assert not [line for line in lines[:made] if line.startswith("USER")], "the base's user is ray"


def test_the_image_compiles_what_it_installs():
    text = (CLUSTER / "Dockerfile").read_text()
    assert text.count("pip install --no-cache-dir --compile ") == text.count("pip install") == 2


def test_what_the_image_is_built_from_is_sent_to_the_builder():
    copied = re.findall(
        r"^COPY --chown=\S+ (?:--chmod=755 )?(.+) \S+$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE
    )
    names = {name for line in copied for name in line.split()}
    sent = set(re.findall(r"^!(\S+)$", (CLUSTER / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    assert names == sent
    # `packages` of pyproject.toml, and what it reads.
    assert {"maskrcnn", "jobs", "pyproject.toml", "requirements.lock", "cluster/attempts.sh"} <= names


# All of them

SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN)|RAY_AUTH_TOKEN=|PRIVATE KEY"
    r"|gcp_credentials|password|passwd|secretKey|://[^/\s]*:[^/\s]*@",
    re.IGNORECASE,
)
EXPOSED = re.compile(r"0\.0\.0\.0|LoadBalancer|NodePort|hostNetwork|dashboard-host=(?!127\.0\.0\.1)")


@each_file
def test_no_file_holds_a_secret_or_opens_the_dashboard(path):
    text = path.read_text()
    assert SECRETS.search(text) is None
    assert EXPOSED.search(text) is None


def test_the_search_for_secrets_finds_some():
    assert SECRETS.search("- --env AWS_SECRET_ACCESS_KEY=abc")
    assert SECRETS.search("s3://key:word@bucket")
    assert EXPOSED.search("ray start --dashboard-host=0.0.0.0")
    assert EXPOSED.search("--dashboard-host=:: ")


@each_file
def test_all_files_name_the_ray_that_is_pinned(path):
    versions = set(re.findall(r'(?:rayproject/ray:|RAY_TAG=|rayVersion: ")(\d+\.\d+\.\d+)', path.read_text()))
    assert versions in ({pinned("ray")}, set())
    assert versions or path == GUIDE


def commands_of(text):
    """Yield the arguments of each `maskrcnn` command in a text, comments and code blocks included."""
    text = re.sub(r"\\\n[ #]*", " ", text)
    for line in text.splitlines():
        match = re.match(
            r"(?:#? {2,}|entrypoint: )?(?:ray job submit .* -- )?(?:maskrcnn|attempts\.sh \d+) (.*)", line
        )
        if match:
            yield shlex.split(match[1], comments=True)


def parse(arguments):
    """Read a command as the command line does, without running it."""
    from maskrcnn_jobs.cli import main

    name, *rest = arguments
    context = main.commands[name].make_context(name, rest)
    if name == "submit":
        parse(list(context.params["command"]))


@each_file
def test_every_command_that_is_shown_exists_with_its_options(path):
    text = path.read_text()
    if path.name == "rayjob.yaml":
        text = f"entrypoint: {loaded(path)['spec']['entrypoint']}"
    commands = list(commands_of(text))
    assert commands or path.name == "Dockerfile"
    for command in commands:
        parse(command)


def test_commands_that_do_not_exist_are_noticed():
    import click

    with pytest.raises(click.NoSuchOption):
        parse(["segment", "a", "b", "--gpus", "8"])
    with pytest.raises(KeyError):
        parse(["submit", "--address", "http://h", "--", "segmnt", "a", "b"])


def test_a_run_on_a_cluster_says_its_device():
    """Where Ray is not started by the command itself, `--device auto` is refused."""
    for path in FILES:
        text = path.read_text()
        if path.name == "rayjob.yaml":
            text = f"entrypoint: {loaded(path)['spec']['entrypoint']}"
        for command in commands_of(text):
            if "submit" in command or "--address" in command or "s3://BUCKET/images" in command:
                assert command[command.index("--device") + 1] in ("cuda", "cpu")


# The cluster on this machine


@pytest.mark.ray
def test_the_local_cluster_starts_asks_for_its_token_and_stops():
    command = [sys.executable, str(CLUSTER / "local.py"), "--nodes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as script:
        try:
            said = ""
            while "Ctrl-C stops 2 nodes" not in said:
                said += (line := script.stdout.readline())
                assert line, f"it ended, and had said: {said}"
            exports = dict(re.findall(r"^export (\w+)=(.*)$", said, re.MULTILINE))
            assert set(exports) == {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}
            jobs = re.search(r"dashboard: (\S+)", said)[1] + "/api/jobs/"

            assert alive_nodes(exports) == 2
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(jobs, timeout=30)
            token = Path(exports["RAY_AUTH_TOKEN_PATH"]).read_text()
            bearer = urllib.request.Request(jobs, headers={"Authorization": f"Bearer {token}"})
            assert urllib.request.urlopen(bearer, timeout=30).status == 200
        finally:
            script.send_signal(signal.SIGINT)
    assert script.returncode == 0
    assert not Path(exports["RAY_AUTH_TOKEN_PATH"]).exists()


def alive_nodes(environment):
    """Ask a cluster as its users do, from a process of their own."""
    code = "import ray; ray.init(log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    environment = os.environ | environment
    return int(subprocess.check_output([sys.executable, "-c", code], env=environment, timeout=120))
