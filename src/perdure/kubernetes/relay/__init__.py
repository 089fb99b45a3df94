"""The relay of an attempt's pod: a container that runs next to the agent's container. Only the
relay has the credentials of the repository and of the checkpoint store.

The agent's container can send requests to the relay, and the agent may be hostile. The relay
therefore accepts only a few requests: fetch the repository of the order (`forge`), and read and
write the checkpoints of the order's run (`store_access`). A request cannot choose a server
or a path on it. The relay does not mount the volume, so no configuration, hook or object of a
workdir can influence it. `server` accepts the requests.
"""
