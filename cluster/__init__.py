"""The cluster: three hosts of prefork behind a real balancer, in network namespaces, and what their clients lose.

The command is `python -m cluster`. docs/cluster.md describes the method.
"""
