"""Checks of a built set of manifests that no schema holds: stages, ports, addresses and rights fit together."""

import sys
import tomllib

import yaml

path = sys.argv[1]
objects = list(yaml.safe_load_all(open(path, encoding="utf-8")))
faults = []


def check(condition, fault):
    if not condition:
        faults.append(fault)


def one(kind, name):
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].startswith(name)]
    if len(found) != 1:
        sys.exit(f"{path}: {len(found)} objects {kind}/{name}, not one")
    return found[0]


def flags(container):
    return dict(arg.removeprefix("--").split("=", 1) for arg in container["args"] if arg.startswith("--"))


config = one("ConfigMap", "asterism")
shard = tomllib.loads(config["data"]["shard.toml"])
gateway = tomllib.loads(config["data"]["gateway.toml"])
pipeline = one("Deployment", "asterism-pipeline")["spec"]["template"]["spec"]
door = one("Deployment", "asterism-gateway")["spec"]
headless = one("Service", "asterism-pipeline")["spec"]
stages = pipeline["containers"]

check(len(stages) == shard["stages"], f"{len(stages)} containers for {shard['stages']} stages")
check(headless.get("clusterIP") == "None" and headless.get("publishNotReadyAddresses"), "the stages' Service")
check(door["replicas"] == 1 and door["strategy"]["type"] == "Recreate", "one gateway drives a pipeline")
ports = []
for index, stage in enumerate(stages):
    port = stage["ports"][0]["containerPort"]
    ports.append(port)
    check(flags(stage)["stage"] == str(index), f"{stage['name']} is given stage {flags(stage)['stage']}")
    check(flags(stage)["listen"] == f"0.0.0.0:{port}", f"{stage['name']} listens elsewhere than on its port {port}")
    for probe in ("livenessProbe", "readinessProbe"):
        check(stage[probe]["grpc"]["port"] == port, f"{stage['name']}: {probe} asks another port than {port}")
check([port["port"] for port in headless["ports"]] == ports, "the Service's ports are not the stages'")
addresses = [f"asterism-pipeline:{port}" for port in ports]
check(gateway["shards"] == addresses, f"the gateway dials {gateway['shards']}, the stages are {addresses}")

for workload in (pipeline, door["template"]["spec"]):
    check(workload["automountServiceAccountToken"] is False, "no process needs Kubernetes' API")
    check(workload["securityContext"]["runAsNonRoot"], "runs as root")
    volumes = {volume["name"] for volume in workload["volumes"]}
    for container in workload["containers"]:
        name, rights = container["name"], container["securityContext"]
        check(rights["capabilities"]["drop"] == ["ALL"], f"{name} keeps capabilities")
        check(rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"], f"{name}'s rights")
        check("memory" in container["resources"]["limits"], f"{name} has no memory limit")
        check({mount["name"] for mount in container["volumeMounts"]} <= volumes, f"{name} mounts what is not there")

if faults:
    sys.exit("\n".join(f"{path}: {fault}" for fault in faults))
print(f"{path.rsplit('/', 1)[-1]}: {len(objects)} objects, {len(stages)} stages")
