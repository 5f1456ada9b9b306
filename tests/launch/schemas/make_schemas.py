"""Write jobset.json and skypilot.json from packages of PyPI; README.md has their versions and licences.

pip install skypilot==0.14.1 kubeflow-trainer-api==2.3.0 kubernetes-validate==1.37.0
python make_schemas.py
"""

import json
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


if __name__ == "__main__":
    for name, schema in (("jobset", jobset()), ("skypilot", skypilot())):
        (HERE / f"{name}.json").write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")
