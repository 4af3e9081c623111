"""deploy/kuberay: strict schema, and whether all that the manifests name is there."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from deploy.validate.commands import ray_start_flags, simple_commands, wrong_command
from deploy.validate.dockerfile import Dockerfile
from deploy.validate.docs import Docs
from deploy.validate.fit import Ask, Node, check_fit, check_replicas
from deploy.validate.kuberay_schema import (
    KINDS,
    Group,
    Job,
    Manifest,
    PodSpec,
    RayCluster,
    RayJob,
    RayService,
    ServiceAccount,
    VolumeClaim,
)
from deploy.validate.pins import Pins
from deploy.validate.problems import Problem, Problems, mapping_of, near, of_schema, read_yaml
from deploy.validate.serve_configs import PRODUCTION, asks_of

FOLDER = "deploy/kuberay"


@dataclass(frozen=True)
class Repository:
    """What manifests may refer to."""

    root: Path
    pins: Pins
    dockerfile: Dockerfile
    docs: Docs
    accounts: set[str]
    claims: set[str]


def check_kuberay(root: Path, pins: Pins, dockerfile: Dockerfile, docs: Docs) -> Problems:
    """Raises BrokenFileError."""
    manifests: list[tuple[str, Manifest]] = []
    for path in sorted((root / FOLDER).glob("*.yaml")):
        for loaded in _load(root, f"{FOLDER}/{path.name}"):
            if isinstance(loaded, Problem):
                yield loaded
            else:
                manifests.append((f"{FOLDER}/{path.name}", loaded))
    accounts = {manifest.metadata.name for _, manifest in manifests if isinstance(manifest, ServiceAccount)}
    claims = {manifest.metadata.name for _, manifest in manifests if isinstance(manifest, VolumeClaim)}
    repository = Repository(root, pins, dockerfile, docs, accounts, claims)
    for file, manifest in manifests:
        if isinstance(manifest, RayJob):
            yield from _check_job(file, manifest, repository)
        elif isinstance(manifest, RayService):
            yield from _check_service(file, manifest, repository)
        elif isinstance(manifest, Job):
            yield from _check_pod(file, "spec.template.spec", manifest.spec.template.spec, repository)


def _load(root: Path, file: str) -> Iterator[Problem | Manifest]:
    for document in read_yaml(root, file):
        schema = KINDS.get(str(document.get("kind")))
        if schema is None:
            yield Problem(file, "kind", f"{document.get('kind')!r}: no kind that is used here; {near('', KINDS)}")
            continue
        try:
            yield schema.model_validate(document)
        except ValidationError as error:
            yield from of_schema(file, error)


def _check_job(file: str, job: RayJob, repository: Repository) -> Problems:
    spec, cluster = job.spec, job.spec.ray_cluster_spec
    broken = list(_check_cluster(file, "spec.rayClusterSpec", cluster, repository))
    yield from broken
    if broken:
        return  # the rest relies on the cluster
    image = cluster.head_group_spec.container.image
    for words in simple_commands(spec.entrypoint):
        local = [repository.dockerfile.in_repository(image, word) for word in words]
        missing = [word for word, there in zip(words, local, strict=True) if there is None]
        if missing:
            yield Problem(
                file, "spec.entrypoint", f"{missing[0]}: not in {image}; correct it or COPY it in deploy/Dockerfile"
            )
        elif wrong := wrong_command(repository.root, [word for word in local if word is not None]):
            yield Problem(file, "spec.entrypoint", f"{wrong}; correct the command")
    ask = Ask({"CPU": spec.entrypoint_num_cpus, "GPU": spec.entrypoint_num_gpus}, 1)
    yield from check_fit(file, "spec.entrypointNumCpus", ask, _nodes_of(cluster), "maxReplicas")


def _check_service(file: str, service: RayService, repository: Repository) -> Problems:
    cluster, inline = service.spec.ray_cluster_config, service.spec.serve_config_v2
    broken = list(_check_cluster(file, "spec.rayClusterConfig", cluster, repository))
    yield from broken
    if broken:
        return
    for group in (cluster.head_group_spec, *cluster.worker_group_specs):
        if not group.container.env_from:
            rule = "takes no variables from a secret, and the server's settings name some; add envFrom"
            yield Problem(file, "spec.rayClusterConfig", f"{group.container.name}: {rule}")
    # Comments apart: what the two files mean.
    if yaml.safe_load(inline) != mapping_of(repository.root, PRODUCTION):
        yield Problem(file, "spec.serveConfigV2", f"differs from {PRODUCTION}: both must say the same; copy that file")
    where = "spec.rayClusterConfig.workerGroupSpecs"
    yield from check_replicas(file, where, asks_of(repository.root), _nodes_of(cluster), "maxReplicas")


def _nodes_of(cluster: RayCluster) -> list[Node]:
    """What the worker groups offer."""
    nodes = []
    for group in cluster.worker_group_specs:
        limits, params = group.container.resources.limits, group.ray_start_params
        offered = {"CPU": _number(params.get("num-cpus", limits.cpu))}
        offered["GPU"] = _number(params.get("num-gpus", limits.gpu))
        nodes.append(Node(group.group_name, offered | _custom(params), group.max_replicas))
    return nodes


def _number(quantity: str) -> float:
    """Of CPUs or GPUs. Raises ValueError."""
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


def _custom(params: dict[str, str]) -> dict[str, float]:
    """The `resources` of rayStartParams: JSON in quotes, which a shell takes off. Raises ValueError."""
    text = params.get("resources", '"{}"')
    return {name: float(amount) for name, amount in json.loads(json.loads(text)).items()}


def _check_cluster(file: str, where: str, cluster: RayCluster, repository: Repository) -> Problems:
    if cluster.ray_version != repository.pins.ray:
        rule = f"must be the pinned one; write {repository.pins.ray}"
        yield Problem(file, f"{where}.rayVersion", f"{cluster.ray_version}: {rule}")
    if cluster.auth_options is None or cluster.auth_options.mode != "token":
        mode = "missing" if cluster.auth_options is None else "disabled"
        rule = "without a token everybody who reaches the pods runs code; write mode: token"
        yield Problem(file, f"{where}.authOptions", f"{mode}: {rule}")
    if not cluster.enable_in_tree_autoscaling or cluster.autoscaler_options is None:
        rule = "must be true, with autoscalerOptions, or maxReplicas means nothing; add them"
        yield Problem(file, f"{where}.enableInTreeAutoscaling", f"{cluster.enable_in_tree_autoscaling}: {rule}")
    head = cluster.head_group_spec
    if head.service_type != "ClusterIP" or head.enable_ingress:
        got = "an ingress" if head.enable_ingress else head.service_type
        rule = "the dashboard takes jobs and must stay inside; write serviceType: ClusterIP, no ingress"
        yield Problem(file, f"{where}.headGroupSpec", f"{got}: {rule}")
    if head.ray_start_params.get("num-cpus") != "0":
        got = head.ray_start_params.get("num-cpus", "all CPUs")
        where_head = f"{where}.headGroupSpec.rayStartParams"
        yield Problem(file, where_head, f'{got}: the head must run no work; write num-cpus: "0"')
    yield from _check_group(file, f"{where}.headGroupSpec", head, repository)
    for index, group in enumerate(cluster.worker_group_specs):
        here = f"{where}.workerGroupSpecs.{index}"
        if not group.min_replicas <= group.replicas <= group.max_replicas:
            got = f"{group.min_replicas}, {group.replicas}, {group.max_replicas}"
            yield Problem(file, here, f"{got}: must be minReplicas <= replicas <= maxReplicas; correct them")
        yield from _check_group(file, here, group, repository)


def _check_group(file: str, where: str, group: Group, repository: Repository) -> Problems:
    """The flags of `ray start`, and the pod."""
    for name in group.ray_start_params.keys() - ray_start_flags():
        yield Problem(
            file, f"{where}.rayStartParams.{name}", f"no flag of `ray start`; {near(name, ray_start_flags())}"
        )
    for name in ("num-cpus", "num-gpus"):
        if not group.ray_start_params.get(name, "0").isdecimal():
            got = group.ray_start_params[name]
            yield Problem(
                file, f"{where}.rayStartParams.{name}", f"{got}: must be a whole number in quotes; correct it"
            )
    try:
        _custom(group.ray_start_params)
    except (ValueError, AttributeError, TypeError):
        got = group.ray_start_params["resources"]
        yield Problem(
            file, f"{where}.rayStartParams.resources", f"""{got}: must be JSON in quotes, as '"{{\\"serve\\": 4}}"'"""
        )
    yield from _check_pod(file, f"{where}.template.spec", group.pod, repository)


def _check_pod(file: str, here: str, pod: PodSpec, repository: Repository) -> Problems:
    """Its image, and every name that it refers to."""
    container = pod.containers[0]
    if wrong := repository.pins.wrong_image(container.image):
        yield Problem(file, f"{here}.containers.0.image", wrong)
    if pod.service_account_name not in repository.accounts:
        way_out = near(pod.service_account_name, repository.accounts)
        yield Problem(file, f"{here}.serviceAccountName", f"{pod.service_account_name}: in no manifest; {way_out}")
    volumes = {volume.name: volume for volume in pod.volumes}
    for mount in container.volume_mounts:
        if mount.name not in volumes:
            yield Problem(
                file, f"{here}.volumeMounts", f"{mount.name}: no volume of the pod; {near(mount.name, volumes)}"
            )
    for volume in pod.volumes:
        claim = volume.persistent_volume_claim
        if claim and claim.claim_name not in repository.claims:
            way_out = near(claim.claim_name, repository.claims)
            yield Problem(file, f"{here}.volumes", f"{claim.claim_name}: a claim of no manifest; {way_out}")
    made = {("secret", source.secret_ref.name) for source in container.env_from}
    made |= {("configmap", volume.config_map.name) for volume in pod.volumes if volume.config_map}
    for kind, name in sorted(made - repository.docs.made):
        yield Problem(
            file, here, f"{name}: no `kubectl create {kind}` in docs/cluster.md makes it; correct the name or add it"
        )
