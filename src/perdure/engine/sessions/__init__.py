"""The session service, for programs that schedule tasks: records of conversations, and statistics
of how often conversations continued.

A session is a pointer to an agent's own conversation. The store's table of sessions is
authoritative; this package only reads and changes it. `service` has the operations (create, get,
update, count, extend, close). `statistics` computes how often conversations continued in a period
(pure). `rebuild` restores lost records from the attempts and their journal. An attempt writes its
own session under its own claim. Therefore this package never changes the session of a running
attempt. The library offers the service as `Runner.sessions`.
"""
