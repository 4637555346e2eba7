"""Runs a Ray cluster of two nodes on this machine in a separate process.

It prints the cluster's address. If its input has the number of a process that a node
has started, it removes this node, and another one joins.
"""

import subprocess
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Serves until its input ends."""
    cluster = Cluster()
    try:
        add_node(cluster, 0, include_dashboard=False)
        nodes = [add_node(cluster, 1) for _ in range(2)]
        print(cluster.address, flush=True)
        for line in sys.stdin:
            words = ["ps", "-o", "ppid=", "-p", line.strip()]
            parent = int(subprocess.check_output(words))
            (lost,) = (node for node in nodes if raylet_of(node) == parent)
            nodes.remove(lost)
            cluster.remove_node(lost)
            nodes.append(add_node(cluster, 1))
            print("another node has joined", flush=True)
    finally:
        cluster.shutdown()


def add_node(cluster, cores, **settings):
    """Adds a node at the loopback address."""
    return cluster.add_node(
        num_cpus=cores,
        node_ip_address="127.0.0.1",
        object_store_memory=80 * 2**20,
        **settings,
    )


def raylet_of(node):
    """Returns the number of the process that starts a node's tasks."""
    (raylet,) = node.all_processes["raylet"]
    return raylet.process.pid


if __name__ == "__main__":
    main()
