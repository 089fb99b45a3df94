"""The relay of an attempt's pod: a container beside the agent's that alone has the credentials of
the repository and of the checkpoint store.

It fulfills few requests, for the agent's container and so possibly for a hostile agent: fetch the
repository of the order (`forge`, or `ssh`), and read and write the checkpoints of the order's run
(`shelf`). A request names neither a server nor a path of its own, and the relay sees nothing of
the volume: no configuration, hook or object of a workdir takes part. `server` listens.
"""
