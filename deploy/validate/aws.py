"""What AWS would refuse, by the description of EC2 that comes with botocore: no call, no account."""

import functools
from typing import Any

import botocore.session
from botocore.validate import ParamValidator

from deploy.validate.problems import Problem, Problems, near

# What Ray reads under `provider` (ray/autoscaler/_private): its schema lets every other name pass.
PROVIDER_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "key_pair",
    "security_group",
    "aws_credentials",
    "cloudwatch",
    "disable_node_updaters",
    "disable_launch_config_check",
    "foreground_node_launch",
    "worker_liveness_check",
}
RAY_KEYS = {"SubnetIds"}  # of node_config, which Ray takes out before it asks EC2
GPU_FAMILIES = ("g", "p")  # instance types with NVIDIA GPUs
ANYWHERE = {"0.0.0.0/0", "::/0"}


@functools.cache
def _ec2() -> Any:
    return botocore.session.get_session().get_service_model("ec2")


@functools.cache
def _regions() -> set[str]:
    return set(botocore.session.get_session().get_available_regions("ec2"))


def check_provider(file: str, provider: dict[str, Any]) -> Problems:
    """Names, region and zones, open ports."""
    for key in provider.keys() - PROVIDER_KEYS:
        yield Problem(
            file, f"provider.{key}", f"{key}: Ray reads no such key and ignores it; {near(key, PROVIDER_KEYS)}"
        )
    region = provider.get("region", "")
    if region not in _regions():
        yield Problem(file, "provider.region", f"{region!r}: no region of AWS; {near(region, _regions())}")
    for zone in filter(None, str(provider.get("availability_zone", "")).split(",")):
        if not zone.startswith(region):
            yield Problem(file, "provider.availability_zone", f"{zone}: must lie in {region}; name zones of it")
    permissions = provider.get("security_group", {}).get("IpPermissions", [])
    for index, permission in enumerate(permissions):
        ranges = {r.get("CidrIp") for r in permission.get("IpRanges", [])}
        ranges |= {r.get("CidrIpv6") for r in permission.get("Ipv6Ranges", [])}
        if ranges & ANYWHERE:
            where = f"provider.security_group.IpPermissions.{index}"
            yield Problem(file, where, f"{min(ranges & ANYWHERE)}: opens ports to everybody; name your own network")


def check_node_config(file: str, where: str, node_config: dict[str, Any], num_gpus: float) -> Problems:
    """What RunInstances would refuse: names, types, instance types; and GPUs that the instance has not."""
    request = {key: value for key, value in node_config.items() if key not in RAY_KEYS}
    shape = _ec2().operation_model("RunInstances").input_shape
    for kind, path, fields in ParamValidator().validate(request | {"MinCount": 1, "MaxCount": 1}, shape)._errors:
        yield Problem(file, where + path, _in_words(kind, fields))
    instance = str(node_config.get("InstanceType", ""))
    known = _ec2().shape_for("InstanceType").enum
    if instance not in known:
        yield Problem(file, f"{where}.InstanceType", f"{instance!r}: no instance type of EC2; {near(instance, known)}")
    elif bool(num_gpus) != instance.startswith(GPU_FAMILIES):
        way_out = "name one of the families g and p" if num_gpus else "add GPU to the type's resources"
        yield Problem(
            file, f"{where}.InstanceType", f"{instance}: does not fit resources with {num_gpus:g} GPU; {way_out}"
        )
    market = node_config.get("InstanceMarketOptions", {})
    if isinstance(market, dict) and market.get("MarketType", "spot") not in _ec2().shape_for("MarketType").enum:
        yield Problem(file, f"{where}.InstanceMarketOptions", f"{market['MarketType']!r}: no market of EC2; write spot")


def _in_words(kind: str, fields: dict[str, Any]) -> str:
    if kind == "unknown field":
        name = fields["unknown_param"]
        return f"{name}: EC2 knows no such field; {near(name, fields['valid_names'])}"
    if kind == "invalid type":
        return f"{fields['param']!r}: must be {' or '.join(fields['valid_types'])}; correct it"
    return f"{fields}: {kind}; correct it"
