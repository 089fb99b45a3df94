"""A TaskRun resource in, a Job for each attempt out, its status back.

The operator (`perdure operator`) owns the retries; a Job's pod (`perdure work --run`) performs
exactly one attempt, with the same engine as at a terminal. They speak by two small documents:
`order` says what the pod is to do, `result` how it ended. What names Kubernetes' own client is
imported late, by the operator alone: a pod needs none of it.
"""
