"""A real Kubernetes on one Debian machine, made from Go modules and Debian packages, without a container engine.

Every node is a pair of a network namespace and a mount namespace with its own containerd, kubelet and kube-proxy; the
control plane has a network namespace of its own, joined to the nodes by a bridge. Nothing in there has an uplink.

``python -m cluster up`` is the command line; tests and the demo use :class:`Cluster`::

    cluster = Cluster("dev", nodes=3)
    cluster.up()
    cluster.load("localhost/medianest-operator:dev")
    cluster.kubectl("get", "nodes")
"""

from cluster.cluster import Cluster
from cluster.errors import ClusterError
from cluster.images import build_image
from cluster.node import Node
from cluster.objectstore import ObjectStore
from cluster.record import Options

__all__ = ["Cluster", "ClusterError", "Node", "ObjectStore", "Options", "build_image"]
