"""What Kubernetes says of a pod, in the words of a status."""

from __future__ import annotations

import pytest

from medianest_operator.reconcile.context import Pod
from medianest_operator.reconcile.pod_problems import of_pod

IMAGE = "images.example/none:1"
PULL = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": '


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            f"rpc error: code = Unknown desc = {PULL}failed to do request: Head"
            ' "https://images.example/v2/none/manifests/1": dial tcp: lookup images.example: no such host',
            'Head "https://images.example/v2/none/manifests/1": dial tcp: lookup images.example: no such host',
        ),
        (f"rpc error: code = NotFound desc = {PULL}{IMAGE}: not found", f"{IMAGE}: not found"),
        (f'Back-off pulling image "{IMAGE}": ErrImagePull: {PULL}no basic auth', "ErrImagePull: no basic auth"),
        ("failed to sync secret cache: timed out", "failed to sync secret cache: timed out"),
    ],
)
def test_the_image_is_named_once_and_its_cause_follows(message: str, told: str) -> None:
    waiting = {"reason": "ErrImagePull", "message": message}
    status = {"containerStatuses": [{"name": "postgres", "state": {"waiting": waiting}}]}
    manifest = {"metadata": {"name": "db-0"}, "spec": {"containers": [{"image": IMAGE}]}, "status": status}
    found = of_pod(Pod(manifest))
    assert found is not None
    assert found.message == f"Pod db-0: image {IMAGE}: {told}. Check spec.image and spec.imagePullSecrets"
