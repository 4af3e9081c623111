"""The fields of Kubernetes and KubeRay that deploy/kuberay uses, and no others: a wrong name is an error.

Written by KubeRay's Go types (ray.io/v1); never held against a live cluster. Extend it when a manifest needs more.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Count = Annotated[int, Field(ge=0, strict=True)]


class Strict(BaseModel):
    """Python names here, camel case in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)


class Metadata(Strict):
    name: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Variable(Strict):
    name: str
    value: str  # a string: YAML's 1 and true are refused


class NameRef(Strict):
    name: Name


class EnvSource(Strict):
    secret_ref: NameRef


class Port(Strict):
    name: Name
    container_port: int = Field(ge=1, le=65535)


class Amounts(Strict):
    cpu: Quantity  # Ray takes its CPUs and memory from the limits
    memory: Quantity
    gpu: Quantity = Field(default="0", alias="nvidia.com/gpu")


class Resources(Strict):
    requests: Amounts
    limits: Amounts


class Mount(Strict):
    name: Name
    mount_path: str = Field(pattern=r"^/")


class Container(Strict):
    name: Literal["ray-head", "ray-worker", "publish"]
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[Variable, ...] = ()
    env_from: tuple[EnvSource, ...] = ()
    ports: tuple[Port, ...] = ()
    resources: Resources
    volume_mounts: tuple[Mount, ...] = ()


class Claim(Strict):
    claim_name: Name


class Volume(Strict):
    name: Name
    persistent_volume_claim: Claim | None = None
    config_map: NameRef | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "Volume":
        if (self.persistent_volume_claim is None) == (self.config_map is None):
            raise ValueError("a volume needs one source; write persistentVolumeClaim or configMap")
        return self


class Toleration(Strict):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class SecurityContext(Strict):
    run_as_non_root: Literal[True]
    run_as_user: int = Field(gt=0)
    fs_group: int = Field(gt=0)


class PodSpec(Strict):
    restart_policy: Literal["Never"] | None = None  # of a Job
    service_account_name: Name
    security_context: SecurityContext
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    containers: tuple[Container]  # one: sidecars have no user here
    volumes: tuple[Volume, ...] = ()


class PodTemplate(Strict):
    spec: PodSpec


class Job(Strict):
    """A plain Kubernetes Job."""

    class Spec(Strict):
        backoff_limit: Count
        template: PodTemplate

    api_version: Literal["batch/v1"]
    kind: Literal["Job"]
    metadata: Metadata
    spec: Spec


class Group(Strict):
    ray_start_params: dict[str, str]
    template: PodTemplate

    @property
    def pod(self) -> PodSpec:
        return self.template.spec

    @property
    def container(self) -> Container:
        return self.pod.containers[0]


class HeadGroup(Group):
    service_type: str = "ClusterIP"
    enable_ingress: bool = False


class WorkerGroup(Group):
    group_name: Name
    replicas: Count
    min_replicas: Count
    max_replicas: Count


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]


class AutoscalerOptions(Strict):
    idle_timeout_seconds: int = Field(gt=0)
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"]


class RayCluster(Strict):
    ray_version: str
    auth_options: AuthOptions | None = None
    enable_in_tree_autoscaling: bool = False
    autoscaler_options: AutoscalerOptions | None = None
    head_group_spec: HeadGroup
    worker_group_specs: tuple[WorkerGroup, ...] = Field(min_length=1)


class RayJobSpec(Strict):
    entrypoint: str
    entrypoint_num_cpus: float = Field(gt=0)  # else the driver runs on the head, which is sized for no work
    entrypoint_num_gpus: float = Field(default=0, ge=0)
    submission_mode: Literal["K8sJobMode", "HTTPMode"]
    backoff_limit: Count
    active_deadline_seconds: int = Field(gt=0)
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: Count
    ray_cluster_spec: RayCluster


class RayServiceSpec(Strict):
    serve_config_v2: str = Field(alias="serveConfigV2")
    ray_cluster_config: RayCluster


class RayJob(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class RayService(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec


class ServiceAccount(Strict):
    api_version: Literal["v1"]
    kind: Literal["ServiceAccount"]
    metadata: Metadata


class Storage(Strict):
    requests: dict[Literal["storage"], Quantity]


class ClaimSpec(Strict):
    access_modes: tuple[Literal["ReadWriteMany", "ReadWriteOnce"], ...] = Field(min_length=1)
    resources: Storage
    storage_class_name: str | None = None


class VolumeClaim(Strict):
    api_version: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


Manifest = RayJob | RayService | Job | ServiceAccount | VolumeClaim
KINDS: dict[Any, type[Manifest]] = {
    "RayJob": RayJob,
    "RayService": RayService,
    "Job": Job,
    "ServiceAccount": ServiceAccount,
    "PersistentVolumeClaim": VolumeClaim,
}
