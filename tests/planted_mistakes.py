"""Mistakes in what the platform team applies: each is one replacement that `make validate-deploy` must name."""

from typing import NamedTuple


class Mistake(NamedTuple):
    """The first occurrence of `right` in the file becomes `wrong`."""

    file: str
    right: str
    wrong: str
    place: str  # that is named; `line` is any line
    words: str  # of the message
    named_in: str = ""  # the file that is named, where it is another one


CLUSTER, DOCKERFILE = "cluster.yaml", "deploy/Dockerfile"
RELABEL, TRAIN, SERVE = (f"deploy/kuberay/{name}.yaml" for name in ("relabel", "train", "serve"))
PRODUCTION, UPSTREAMS = "serve_configs/production.yaml", "serve_configs/production_upstreams.yaml"
HEAD, GPU = "available_node_types.head", "available_node_types.gpu_worker"
START = "head_start_ray_commands"
SERVE_GROUP, CONTAINER = "spec.rayClusterConfig.workerGroupSpecs.0", "template.spec.containers.0"

MISTAKES: dict[str, Mistake] = {
    "a wrong name at the top": Mistake(
        CLUSTER, "upscaling_speed", "upscale_speed", "-", "'upscale_speed' was unexpected"
    ),
    "a wrong name under provider": Mistake(
        CLUSTER,
        "availability_zone",
        "availability_zones",
        "provider.availability_zones",
        "did you mean availability_zone",
    ),
    "a region that is not there": Mistake(
        CLUSTER, "us-west-2\n", "us-west-9\n", "provider.region", "'us-west-9': no region of AWS"
    ),
    "a zone of another region": Mistake(
        CLUSTER, "us-west-2a", "us-east-1a", "provider.availability_zone", "must lie in us-west-2"
    ),
    "a wrong name in a node": Mistake(
        CLUSTER,
        "InstanceMarketOptions",
        "InstanceMarketOption",
        "available_node_types.cpu_worker.node_config",
        "did you mean InstanceMarketOptions",
    ),
    "an instance type that is not there": Mistake(
        CLUSTER, "g5.2xlarge", "g5.3xlarge", f"{GPU}.node_config.InstanceType", "'g5.3xlarge': no instance type"
    ),
    "a GPU that the instance has not": Mistake(
        CLUSTER,
        "g5.2xlarge",
        "m6i.2xlarge",
        f"{GPU}.node_config.InstanceType",
        "m6i.2xlarge: does not fit resources with 1 GPU",
    ),
    "fewer nodes at most than at least": Mistake(
        CLUSTER,
        "min_workers: 0\n    max_workers: 2",
        "min_workers: 3\n    max_workers: 2",
        f"{GPU}.min_workers",
        "3: must be at most max_workers, 2",
    ),
    "more nodes of a type than of all": Mistake(
        CLUSTER,
        "max_workers: 8",
        "max_workers: 80",
        "available_node_types.cpu_worker.max_workers",
        "80: must be at most max_workers of all, 12",
    ),
    "a head that works": Mistake(
        CLUSTER,
        "resources: {CPU: 0} #",
        "resources: {CPU: 4} #",
        f"{HEAD}.resources.CPU",
        "4: the head must run no work",
    ),
    "a head that starts with CPUs": Mistake(CLUSTER, " --num-cpus=0", "", START, "`ray start` without --num-cpus=0"),
    "a public dashboard": Mistake(
        CLUSTER,
        "--dashboard-host=127.0.0.1",
        "--dashboard-host=0.0.0.0",
        START,
        "--dashboard-host 0.0.0.0: the dashboard takes jobs",
    ),
    "no metrics": Mistake(CLUSTER, " --metrics-export-port=8080", "", START, "without --metrics-export-port"),
    "a flag of ray start that is not there": Mistake(
        CLUSTER, "--object-manager-port", "--object-manger-port", f"{START}.1", "No such option '--object-manger-port'"
    ),
    "no token": Mistake(
        CLUSTER,
        "RAY_AUTH_MODE=token",
        "RAY_AUTH_MODE=disabled",
        "docker.run_options",
        "disabled: without a token everybody",
    ),
    "a token that is not mounted": Mistake(
        CLUSTER,
        "PATH=/home/ray/secrets",
        "PATH=/home/ray/secret",
        "docker.run_options",
        "/home/ray/secret/auth_token: lies in no file mount",
    ),
    "no SSH user": Mistake(CLUSTER, "ssh_user: ubuntu", 'ssh_user: ""', "auth.ssh_user", "missing"),
    "an image that moves": Mistake(
        CLUSTER, "ray:2.60.0-py311 ", "ray:latest ", "docker.image", "rayproject/ray:latest: an image must be pinned"
    ),
    "an image of another Ray": Mistake(
        CLUSTER, "ray:2.60.0-py311 ", "ray:2.59.0-py311 ", "docker.image", "must be Ray of constraints.txt"
    ),
    "a mount of what is not there": Mistake(
        CLUSTER,
        "seqroute-ray: .",
        "seqroute-ray: ./src",
        "file_mounts./home/ray/seqroute-ray",
        "./src: no such file or folder",
    ),
    "a mount of one machine": Mistake(
        CLUSTER,
        "~/.seqroute/secrets",
        "/root/secrets",
        "file_mounts./home/ray/secrets",
        "/root/secrets: exists on one machine only",
    ),
    "a mount of one's own keys": Mistake(
        CLUSTER, "~/.seqroute/secrets", "~/.ssh", "file_mounts./home/ray/secrets", "~/.ssh: would copy your own keys"
    ),
    "gigabytes that are copied": Mistake(
        CLUSTER, ".git, .venv, runs", ".git, runs", "rsync_exclude", ".venv: would be copied"
    ),
    "an extra that is not there": Mistake(
        CLUSTER,
        "[serve]",
        "[serving]",
        "available_node_types.serve_worker.worker_setup_commands.0",
        "serving: no extra of pyproject.toml",
    ),
    "constraints that are not there": Mistake(
        CLUSTER,
        "/constraints.txt -e",
        "/constraint.txt -e",
        "available_node_types.serve_worker.worker_setup_commands.0",
        "constraint.txt is not in the repository",
    ),
    "fewer nodes than replicas need": Mistake(
        CLUSTER, "serve: 4}", "serve: 2}", "available_node_types", "8 replicas of 1 serve: the nodes hold 4"
    ),
    "a nightly Ray": Mistake(
        CLUSTER, "setup_commands: []", "# setup_commands", "setup_commands", "must be of type list"
    ),
    "a folder that is not mounted": Mistake(
        CLUSTER, "cd /home/ray/seqroute-ray", "cd /home/ray/seqroute", f"{START}.1", "lies in no file mount"
    ),
    "a wrong name in a manifest": Mistake(
        RELABEL, "maxReplicas", "maxReplica", "spec.rayClusterSpec.workerGroupSpecs.0.maxReplica", "not a field here"
    ),
    "another image than the repository's": Mistake(
        RELABEL,
        "seqroute-training:0.1.0",
        "seqroute-trainer:0.1.0",
        f"spec.rayClusterSpec.headGroupSpec.{CONTAINER}.image",
        "no stage of deploy/Dockerfile builds it",
    ),
    "a flag of a job that is not there": Mistake(
        RELABEL, "--sessions", "--session", "spec.entrypoint", "Unrecognized options"
    ),
    "a job that is not there": Mistake(
        RELABEL, "jobs/relabel.py", "jobs/relable.py", "spec.entrypoint", "jobs/relable.py: no such file"
    ),
    "a job that is not in the image": Mistake(
        RELABEL, "/app/jobs/", "/app/benchmarks/", "spec.entrypoint", "/app/benchmarks/relabel.py: not in registry"
    ),
    "a value that a job refuses": Mistake(
        TRAIN,
        "--cql.num-learners 0",
        "--cql.num-learners -1",
        "spec.entrypoint",
        "num_learners, num_gpus_per_learner must be >= 0",
    ),
    "a driver that fits nowhere": Mistake(
        TRAIN, "entrypointNumGpus: 1", "entrypointNumGpus: 2", "spec.entrypointNumCpus", "2 GPU: no node offers that"
    ),
    "a claim that is not there": Mistake(
        TRAIN,
        "claimName: seqroute-data",
        "claimName: data",
        "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes",
        "data: a claim of no manifest",
    ),
    "pods without a token": Mistake(
        SERVE, "mode: token", "mode: disabled", "spec.rayClusterConfig.authOptions", "disabled: without a token"
    ),
    "a public service": Mistake(
        SERVE,
        "serviceType: ClusterIP",
        "serviceType: LoadBalancer",
        "spec.rayClusterConfig.headGroupSpec",
        "LoadBalancer: the dashboard takes jobs",
    ),
    "resources that a shell breaks": Mistake(
        SERVE,
        """'"{\\"serve\\": 4}"'""",
        """'{"serve": 4}'""",
        f"{SERVE_GROUP}.rayStartParams.resources",
        "must be JSON in quotes",
    ),
    "a secret that nothing makes": Mistake(
        SERVE,
        "secretRef: {name: seqroute-serving}",
        "secretRef: {name: keys}",
        "spec.rayClusterConfig.headGroupSpec.template.spec",
        "keys: no `kubectl create secret`",
    ),
    "two Serve configs that differ": Mistake(
        SERVE,
        "target_ongoing_requests: 100",
        "target_ongoing_requests: 10",
        "spec.serveConfigV2",
        f"differs from {PRODUCTION}",
    ),
    "a wrong name in a Serve config": Mistake(
        PRODUCTION,
        "max_ongoing_requests",
        "max_ongoing_request",
        "applications.0.deployments.0.max_ongoing_request",
        "did you mean max_ongoing_requests",
    ),
    "settings that are not there": Mistake(
        PRODUCTION,
        "production_upstreams.yaml",
        "production_upstream.yaml",
        "applications.0.args.config",
        "did you mean serve_configs/production_upstreams.yaml",
    ),
    "a limit that is no number": Mistake(
        PRODUCTION,
        "max_replicas: 8",
        "max_replicas: many",
        "deployments.SeqRoute.autoscaling_config.max_replicas",
        "'many'",
    ),
    "an application that is not there": Mistake(
        PRODUCTION, "build_app", "build", "applications.0.import_path", "seqroute_ray.serving.app has no build"
    ),
    "a shutdown that cuts answers off": Mistake(
        PRODUCTION,
        "graceful_shutdown_timeout_s: 660",
        "graceful_shutdown_timeout_s: 60",
        "applications.0.deployments.0.graceful_shutdown_timeout_s",
        "60: cuts paid answers off",
    ),
    "an undocumented variable": Mistake(
        UPSTREAMS, "OPENAI_API_KEY", "OPENAI_KEY", "upstreams.2.api_key_env", "OPENAI_KEY: not in docs/cluster.md"
    ),
    "a wrong name in the settings": Mistake(
        UPSTREAMS, "upstream_timeout_s", "timeout_s", "timeout_s", "not a field here"
    ),
    "a ledger of one node": Mistake(
        UPSTREAMS,
        "redis://redis.example.com:6379/0",
        "ledger.sqlite",
        "proxy_location",
        "the settings' ledger lies on one",
        PRODUCTION,
    ),
    "a stage that is not there": Mistake(
        DOCKERFILE, "FROM base AS serving", "FROM bas AS serving", "line", "bas: no stage above"
    ),
    "a copy of what is not there": Mistake(DOCKERFILE, "COPY jobs jobs", "COPY job jobs", "line", "job: no such file"),
    "a copy of what is kept out": Mistake(
        ".dockerignore", "!jobs\n", "", "line", "jobs: .dockerignore keeps it out", DOCKERFILE
    ),
    "torch in a replica": Mistake(DOCKERFILE, '".[serve]"', '".[serve,train]"', "line", "torch: a replica needs none"),
    "an unpinned install": Mistake(
        DOCKERFILE, "install -c constraints.txt", "install", "line", "versions must be pinned"
    ),
    "an image that runs as root": Mistake(
        DOCKERFILE, "USER ray\n\nFROM", "\nFROM", "line", "serving: an image must not run as root"
    ),
    "a documented flag that is not there": Mistake(
        "docs/cluster.md", "--entrypoint-num-cpus", "--entrypoint-cpus", "line", "No such option '--entrypoint-cpus'"
    ),
    "a documented file that is not there": Mistake(
        "docs/cluster.md",
        "-f deploy/kuberay/serve.yaml",
        "-f deploy/serve.yaml",
        "line",
        "deploy/serve.yaml: no such file",
    ),
}
