"""The relay of an attempt's pod: a container beside the agent's. Only the relay has the credentials
of the repository and of the checkpoint store.

The agent's container, and so a hostile agent, can send requests to the relay. The relay therefore
accepts only a few: fetch the repository of the order (`forge` or `ssh`), and read and write the
checkpoints of the order's run (`store_access`). A request cannot choose a server or a path on it.
The relay does not mount the volume, so no configuration, hook or object of a workdir can influence
it. `server` accepts the requests."""
