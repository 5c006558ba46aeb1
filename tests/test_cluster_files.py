"""What cluster/ says, held against Ray's own schemas and options and against our command line."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from recipe_ray.base.errors import SpecError
from recipe_ray.cli.app import app
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.spec import Growth
from recipe_ray.schedule.resources import Capacity, check_fits, load_cluster

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
CLOUDS = ("aws", "gcp")
LAUNCHED = (*CLOUDS, "local")
RAY = "2.60.0"

# the fields of KubeRay 1.6's API that its schema knows: a misspelt one is dropped in silence there
RAY_CLUSTER = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
    "workerGroupSpecs", "headServiceAnnotations", "suspend", "managedBy",
    "gcsFaultToleranceOptions", "upgradeStrategy",
}  # fmt: skip
AUTOSCALER = {
    "resources", "image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext",
    "idleTimeoutSeconds", "upscalingMode", "version",
}  # fmt: skip
HEAD_GROUP = {
    "serviceType", "headService", "enableIngress", "rayStartParams", "template", "resources",
    "labels",
}  # fmt: skip
WORKER_GROUP = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams",
    "template", "scaleStrategy", "suspend", "idleTimeoutSeconds", "resources", "labels",
}  # fmt: skip
RAY_JOB = {
    "entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "rayClusterSpec",
    "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "submitterPodTemplate", "metadata",
    "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "runtimeEnvYAML",
    "jobId", "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "suspend",
}  # fmt: skip


def read(name: str) -> str:
    return (CLUSTER / name).read_text()


def launcher(name: str) -> dict[str, Any]:
    """Return a cluster launcher's file as Ray completes it."""
    from ray.autoscaler._private.util import prepare_config

    prepared: dict[str, Any] = prepare_config(yaml.safe_load(read(f"{name}.yaml")))
    return prepared


def ray_cluster() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(read("kuberay/raycluster.yaml"))
    return manifest


def ray_job() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(read("kuberay/rayjob.yaml"))
    return manifest


def pods() -> Iterator[dict[str, Any]]:
    cluster = ray_cluster()["spec"]
    yield cluster["headGroupSpec"]["template"]["spec"]
    yield from (group["template"]["spec"] for group in cluster["workerGroupSpecs"])
    yield ray_job()["spec"]["submitterPodTemplate"]["spec"]


def ray_starts() -> Iterator[tuple[str, list[str]]]:
    """Yield where Ray is started, and with which options."""
    for name in LAUNCHED:
        config = launcher(name)
        for part in ("head", "worker"):
            command = config[f"{part}_start_ray_commands"][-1]
            yield f"{name} {part}", shlex.split(command.partition("ray start ")[2])
    spec = ray_cluster()["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        head = "groupName" not in group
        options = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
        yield f"kuberay {'head' if head else 'worker'}", [*(["--head"] if head else []), *options]
    guide = (ROOT / "docs/guides/two-machines.md").read_text()
    for options in re.findall(r"^    \S*ray start (.*)$", guide, re.MULTILINE):
        yield f"guide {'first' if '--head' in options else 'worker'}", shlex.split(options)
    script = read("slurm.sbatch").replace("\\\n", " ")
    (common,) = re.findall(r"^common=\((.*)\)$", script, re.MULTILINE)
    for start in re.findall(r"ray start (.*) &$", script, re.MULTILINE):
        known = start.replace('"${common[@]}"', common).replace('"', "")
        known = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", known)  # its default
        values = re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", known)
        yield f"slurm {'head' if '--head' in start else 'worker'}", shlex.split(values)


def our_commands() -> Iterator[list[str]]:
    """Yield the words after `recipe-ray` of every command in the folder."""
    texts = [
        *re.findall(r"^    (?:.* -- )?recipe-ray (.*)$", read("README.md"), re.MULTILINE),
        *re.findall(
            r"sbatch (?:--\S+ )*cluster/slurm.sbatch (.*--store.*)$", read("README.md"), re.M
        ),
        ray_job()["spec"]["entrypoint"].removeprefix("recipe-ray "),
    ]
    for text in texts:
        words = shlex.split(text, comments=True)
        yield ["sweep", *words] if words[0].startswith("experiments/") else words


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_launcher_files(name: str) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(launcher(name))
    with pytest.raises(Exception, match="max_workerz"):
        validate_config({**launcher(name), "max_workerz": 1})


def test_ray_can_scale_the_kuberay_groups() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    manifest = ray_cluster()
    manifest["metadata"]["namespace"] = "recipe-ray"
    types = _derive_autoscaling_config_from_ray_cr(manifest)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (2, 8)


def test_kuberay_knows_every_field() -> None:
    cluster, job = ray_cluster(), ray_job()
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = cluster["spec"]
    assert spec.keys() <= RAY_CLUSTER
    assert spec["autoscalerOptions"].keys() <= AUTOSCALER
    assert spec["headGroupSpec"].keys() <= HEAD_GROUP
    assert job["spec"].keys() <= RAY_JOB
    for group in spec["workerGroupSpecs"]:
        assert group.keys() <= WORKER_GROUP
        assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_job_brings_the_same_cluster() -> None:
    assert ray_job()["spec"]["rayClusterSpec"] == ray_cluster()["spec"]


def test_one_version_of_ray_everywhere() -> None:
    import ray

    assert ray.__version__ == RAY
    pinned = re.findall(r"^ray==(.*)$", read("constraints.txt"), re.MULTILINE)
    images = [
        version
        for file in ("aws.yaml", "gcp.yaml", "Dockerfile")
        for version in re.findall(r"rayproject/ray:([\d.]+)-py311", read(file))
    ]
    assert pinned == [RAY]
    assert images == [RAY] * 3
    assert ray_cluster()["spec"]["rayVersion"] == RAY


def test_ray_knows_every_option_it_is_started_with() -> None:
    from ray.scripts.scripts import start

    starts = list(ray_starts())
    assert len(starts) == 2 * (len(LAUNCHED) + len(("kuberay", "slurm", "guide")))
    for where, options in starts:
        given = start.make_context("start", options, resilient_parsing=True).params
        assert given["head"] is where.endswith(("head", "first")), where
        if where.endswith("head"):
            assert (given["num_cpus"], given["num_gpus"]) == (0, 0), where  # nothing trains there
        assert 10**9 <= given["object_store_memory"] <= 8 * 10**9, where
        assert given["object_spilling_directory"] or where.startswith("guide"), where
        # in Kubernetes the operator has to reach it, and a policy says who else may
        reachable = "0.0.0.0" if where == "kuberay head" else "127.0.0.1"
        assert given["dashboard_host"] == reachable, where


@pytest.mark.parametrize("name", CLOUDS)
def test_clouds_run_spot_workers_behind_a_head_that_trains_nothing(name: str) -> None:
    config = launcher(name)
    head, worker = (config["available_node_types"][kind] for kind in ("head", "gpu"))
    spot = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[name]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0
    assert spot not in head["node_config"]
    assert re.search("spot|preemptible", str(worker["node_config"][spot]))
    assert 0 < worker["min_workers"] < worker["max_workers"] == config["max_workers"]


def test_the_smallest_cluster_holds_every_kind_of_stage_of_table1() -> None:
    from recipe_ray.data.sources import Locations
    from recipe_ray.experiment.plan import make_plan

    minimum = launcher("gcp")["available_node_types"]["gpu"]
    nodes = minimum["min_workers"]
    each = minimum["resources"]
    one = "grid=[{models: [bert], attacks: [por], defenses: [recipe-por], tasks: [sst2]}]"
    experiment = load_experiment(ROOT / "experiments/paper/table1.yaml", (one,))
    workers = experiment.launch.workers
    stages = make_plan(experiment, Locations(None, ROOT)).stages.values()
    assert {stage.name for stage in stages} == {"backdoor", "purify", "finetune"}
    assert max(workers["backdoor"], workers["purify"]) == nodes
    capacity = Capacity(nodes * each["CPU"], nodes * each["GPU"], each["CPU"], each["GPU"])
    check_fits(stages, experiment.launch, capacity)
    assert launcher("aws")["available_node_types"]["gpu"]["min_workers"] == nodes
    assert ray_cluster()["spec"]["workerGroupSpecs"][0]["minReplicas"] == nodes


def test_nothing_is_open_to_the_world_or_without_a_token() -> None:
    for file in (*CLUSTER.glob("*"), *(CLUSTER / "kuberay").glob("*")):
        if file.is_file():
            assert not re.search(r"0\.0\.0\.0/0|LoadBalancer|NodePort", file.read_text()), file
    for name in CLOUDS:
        assert "--env RAY_AUTH_MODE=token" in launcher(name)["docker"]["run_options"]
    for part in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in launcher("local")[f"{part}_start_ray_commands"][-1]
    for name in LAUNCHED:
        assert launcher(name)["file_mounts"]["~/.ray"] == "~/.ray"
    assert "export RAY_AUTH_MODE=token" in read("slurm.sbatch")
    assert ray_cluster()["spec"]["authOptions"] == {"mode": "token"}
    assert ray_cluster()["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    for kind in launcher("aws")["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"]  # else Ray makes one with ssh for everybody
    for kind in launcher("gcp")["available_node_types"].values():
        assert kind["node_config"]["networkInterfaces"][0]["subnetwork"].endswith("/recipe-ray")


def test_pods_are_limited_and_not_root() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        requests, limits = (container["resources"][kind] for kind in ("requests", "limits"))
        assert {"cpu", "memory"} <= requests.keys() == limits.keys()
        assert ("nvidia.com/gpu" in limits) is (container["name"] == "ray-worker")


def test_the_network_policy_is_of_the_pods() -> None:
    accounts = {}
    for manifest in yaml.safe_load_all(read("kuberay/access.yaml")):
        accounts[manifest["kind"], manifest["metadata"]["name"]] = manifest
    selected = accounts["NetworkPolicy", "recipe-ray"]["spec"]["podSelector"]["matchLabels"]
    cluster = ray_cluster()["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == selected
        assert ("ServiceAccount", group["template"]["spec"]["serviceAccountName"]) in accounts


def test_every_node_installs_the_pinned_versions() -> None:
    for name in LAUNCHED:
        config = launcher(name)
        installs = [line for line in config["worker_setup_commands"] if "pip install" in line]
        pinned, again = installs
        assert "-c ~/recipe-ray/cluster/constraints.txt" in pinned
        assert "--no-deps --force-reinstall" in again  # pip would keep an older build
        assert config["file_mounts"]["~/recipe-ray/cluster"] == CLUSTER.name
    image = read("Dockerfile").replace("\\\n", " ")
    installs = re.findall(r"pip install .*", image)
    assert len(installs) == 2
    assert all("-c /home/ray/constraints.txt" in line for line in installs)


def test_the_image_copies_what_there_is_and_runs_as_a_user() -> None:
    allowed = [line[1:] for line in read("Dockerfile.dockerignore").split() if line[0] == "!"]
    copied = re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", read("Dockerfile"), re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists()
        assert source in allowed
    assert re.findall(r"^USER (.*)$", read("Dockerfile"), re.MULTILINE)[-1] == "1000"


def test_our_command_line_takes_every_command() -> None:
    group: Any = typer.main.get_command(app)
    commands, grown = list(our_commands()), list[Growth | None]()
    assert {words[0] for words in commands} == {"plan", "sweep", "status", "report"}
    for words in commands:
        parsed = group.get_command(None, words[0]).make_context(words[0], words[1:])
        if "file" in parsed.params:
            inside = str(parsed.params["file"]).removeprefix("recipe-ray/")  # as on the nodes
            experiment = load_experiment(ROOT / inside, tuple(parsed.params.get("set_") or ()))
            assert experiment.name == "paper_table1"
            grown.append(experiment.launch.grow_to)
    workers = launcher("aws")["available_node_types"]["gpu"]["max_workers"]
    what = {"nodes": workers, "cpus": 8, "gpus": 1}
    assert [one.model_dump() for one in grown if one] == [what] * 3  # clouds, KubeRay's two


def test_the_forecast_is_of_the_clusters_that_the_launchers_start(tmp_path: Path) -> None:
    filled = tmp_path / "forecast.yaml"
    filled.write_text(re.sub(r"REPLACE_\w+", "60", read("forecast.yaml")))
    cluster = load_cluster(filled)
    (node,) = cluster.nodes
    worker = launcher("gcp")["available_node_types"]["gpu"]
    assert (node.cpus, node.gpus) == (worker["resources"]["CPU"], worker["resources"]["GPU"])
    assert (node.count, cluster.max_nodes) == (worker["min_workers"], worker["max_workers"])
    with pytest.raises(SpecError) as refused:
        load_cluster(CLUSTER / "forecast.yaml")
    (line,) = str(refused.value).splitlines()
    assert "fill in what says REPLACE: nodes[0].price_per_hour, " in line
    assert "stage_seconds.purify" in line


def test_the_batch_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sbatch")], check=True)
    # an option after the first command would be ignored
    body = read("slurm.sbatch").partition("set -euo pipefail")[2]
    assert "#SBATCH" not in body


def statements() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(read("aws_head_policy.json"))["Statement"]
    return found


def test_the_head_has_no_rights_by_wildcard_on_aws() -> None:
    for statement in statements():
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"])
        looks = all(":Describe" in action for action in statement["Action"])
        assert (statement["Resource"] == "*") == looks
    assert "FullAccess" not in read("README.md")
    readme = re.sub(r"'\"\$\w+\"'", "x", read("README.md")).replace("\n", " ")
    documents = re.findall(r"\{\"Version\".*?\}\]\}", readme)
    assert len(documents) == 2
    for text in documents:
        for statement in json.loads(text)["Statement"]:
            assert "*" not in "".join(statement["Action"])


def test_the_head_may_start_and_end_what_aws_yaml_names_and_nothing_else() -> None:
    config = yaml.safe_load(read("aws.yaml"))
    region, worker = config["provider"]["region"], config["available_node_types"]["gpu"]
    allowed = {action for statement in statements() for action in statement["Action"]}
    assert {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"} <= allowed
    assert not config["provider"]["cache_stopped_nodes"]  # else it would start and stop them, too
    asked = [one["Condition"]["StringEquals"] for one in statements() if "Condition" in one]
    conditions = {name: value for one in asked for name, value in one.items()}
    assert conditions["ec2:InstanceType"] == [worker["node_config"]["InstanceType"]]
    for name in ("aws:RequestTag/ray-cluster-name", "aws:ResourceTag/ray-cluster-name"):
        assert conditions[name] == config["cluster_name"]
    places = [place for one in statements() for place in one["Resource"] if one["Resource"] != "*"]
    assert all(place.startswith((f"arn:aws:ec2:{region}:", "arn:aws:iam::")) for place in places)
    (role,) = (place for place in places if ":iam:" in place)
    profile = worker["node_config"]["IamInstanceProfile"]["Arn"]
    assert role.rpartition("/")[2] == profile.rpartition("/")[2]
