"""Bulk on a real Ray cluster of three nodes on this machine, one of which is killed when the first part is done.

python -m tests.service.bulk.ray_cluster INPUT ... --out DIR ...
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

from service.__main__ import main
from service.commands import bulk

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
doomed = [cluster.add_node(num_cpus=1) for _ in range(2)][:1]
cluster.wait_for_nodes()
say = bulk.say


def say_and_kill(sentence: str) -> None:
    say(sentence)
    while doomed:
        cluster.remove_node(doomed.pop(), allow_graceful=False)


bulk.say = say_and_kill
try:
    status = main(["bulk", *sys.argv[1:], "--ray", cluster.address])
finally:
    cluster.shutdown()
sys.exit(status)
