"""Runs TaskRun resources: one Job for each attempt, and the result in the TaskRun's status.

The operator (`perdure operator`) owns the retries. A Job's pod (`perdure work --run`) performs
exactly one attempt, with the same engine that the command line uses. Operator and pod exchange two
small documents: `order` says what the pod has to do, `result` says how the attempt ended. Only the
operator and the commands for a cluster import a client library for Kubernetes. A pod does not need
one.
"""
