"""Write the schemas from packages of PyPI; README.md has their versions and licences.

No package has those of Kueue and of Ray's operator: the fields that the manifests use are written down here, after
their API references (kueue.sigs.k8s.io/docs/reference/kueue.v1beta2, docs.ray.io: RayJob, ray.io/v1), closed to others.

pip install skypilot==0.14.1 kubeflow-trainer-api==2.3.0 kubernetes-validate==1.37.0
python make_schemas.py [NAME ...]
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
KUBERNETES = "v1.34.0-local-strict"
TEMPLATE = "io.k8s.api.batch.v1.JobTemplateSpec"
META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def kubernetes_definitions() -> dict:
    """What a job's template and an object's metadata reach."""
    folder = Path(find_spec("kubernetes_validate").origin).parent / "kubernetes-json-schema" / KUBERNETES
    known = json.loads((folder / "_definitions.json").read_text())["$defs"]
    reached, open_names = {}, [TEMPLATE, META]
    while open_names:
        name = open_names.pop()
        if name not in reached:
            reached[name] = without_prose(known[name])
            open_names += [ref.rpartition("/")[2] for ref in references(reached[name])]
    return reached


def references(node) -> list[str]:
    """Every $ref below ``node``."""
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []


def without_prose(node):
    """``node`` without descriptions; references point at #/$defs."""
    if isinstance(node, dict):
        kept = {k: v for k, v in node.items() if k not in ("description", "title", "default") or isinstance(v, dict)}
        return {
            k: f"#/$defs/{v.rpartition('/')[2]}" if k == "$ref" and isinstance(v, str) else without_prose(v)
            for k, v in kept.items()
            if not k.startswith("x-")
        }
    return [without_prose(value) for value in node] if isinstance(node, list) else node


def jobset() -> dict:
    """The models of the JobSet API, closed to unknown keys, over Kubernetes' own definitions."""
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    schema = JobsetV1alpha2JobSet.model_json_schema(by_alias=True)
    defs = {name: without_prose(body) for name, body in schema.pop("$defs").items() if name.startswith("Jobset")}
    for body in defs.values():
        if body.get("type") == "object":
            body["additionalProperties"] = False
    root = without_prose(schema) | {
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
    }
    defs |= kubernetes_definitions()
    renamed = {"IoK8sApiBatchV1JobTemplateSpec": TEMPLATE, "IoK8sApimachineryPkgApisMetaV1ObjectMeta": META}
    text = json.dumps(root | {"$defs": defs})
    for old, new in renamed.items():
        text = text.replace(f'"#/$defs/{old}"', f'"#/$defs/{new}"')
    return json.loads(text)


def skypilot() -> dict:
    """SkyPilot's schema of a task, which its package has as a function."""
    from sky.utils import schemas

    return without_prose(schemas.get_task_schema())


def closed(required: str, **properties) -> dict:
    """An object of these properties and no others; ``required``: names, divided by blanks."""
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


def texts() -> dict:
    """An object of any keys whose values are texts, as labels are."""
    return {"type": "object", "additionalProperties": {"type": "string"}}


def listed(item: dict) -> dict:
    """A list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1}


def resource(group: str, kind: str, **properties) -> dict:
    """A resource of a Kubernetes API."""
    required = "apiVersion kind metadata " + " ".join(properties)
    names = closed("name", name={"type": "string"}, namespace={"type": "string"}, labels=texts())
    return closed(required, apiVersion={"const": group}, kind={"const": kind}, metadata=names, **properties)


def kueue() -> dict:
    """What an administrator sets up once: nodes, quota, queue, priority (kueue.x-k8s.io/v1beta2)."""
    group, name = "kueue.x-k8s.io/v1beta2", {"type": "string"}
    quota = closed("name nominalQuota", name=name, nominalQuota={"type": ["integer", "string"]})
    flavor = closed("name resources", name=name, resources=listed(quota))
    resources = closed("coveredResources flavors", coveredResources=listed(name), flavors=listed(flavor))
    cluster = closed(
        "resourceGroups",
        namespaceSelector={"type": "object"},
        queueingStrategy={"enum": ["BestEffortFIFO", "StrictFIFO"]},
        resourceGroups=listed(resources),
    )
    priority = resource(group, "WorkloadPriorityClass", value={"type": "integer"})
    priority["properties"]["description"] = {"type": "string"}
    kinds = [
        resource(group, "ResourceFlavor", spec=closed("", nodeLabels=texts(), topologyName=name)),
        resource(group, "ClusterQueue", spec=cluster),
        resource(group, "LocalQueue", spec=closed("clusterQueue", clusterQueue=name)),
        priority,
    ]
    return {"oneOf": kinds}


def rayjob() -> dict:
    """A job of KubeRay with its cluster (ray.io/v1), pods by Kubernetes' own definitions."""
    definitions = kubernetes_definitions()
    pod = {"$ref": "#/$defs/io.k8s.api.core.v1.PodTemplateSpec"}
    head = closed("rayStartParams template", rayStartParams=texts(), template=pod, serviceType={"type": "string"})
    count = {"type": "integer", "minimum": 0}
    workers = closed(
        "groupName replicas rayStartParams template",
        groupName={"type": "string"},
        replicas=count,
        minReplicas=count,
        maxReplicas=count,
        numOfHosts=count,
        rayStartParams=texts(),
        template=pod,
    )
    cluster = closed(
        "headGroupSpec workerGroupSpecs",
        rayVersion={"type": "string"},
        enableInTreeAutoscaling={"type": "boolean"},
        headGroupSpec=head,
        workerGroupSpecs=listed(workers),
    )
    spec = closed(
        "entrypoint rayClusterSpec",
        entrypoint={"type": "string"},
        entrypointNumCpus={"type": "number"},
        runtimeEnvYAML={"type": "string"},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        backoffLimit=count,
        activeDeadlineSeconds=count,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=count,
        suspend={"type": "boolean"},
        rayClusterSpec=cluster,
    )
    return resource("ray.io/v1", "RayJob", spec=spec) | {"$defs": definitions}


if __name__ == "__main__":
    made = {"jobset": jobset, "skypilot": skypilot, "kueue": kueue, "rayjob": rayjob}
    for name in sys.argv[1:] or made:
        schema = made[name]()
        (HERE / f"{name}.json").write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")
