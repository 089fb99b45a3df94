"""The parent of one agent that is kept for several attempts. It does for all of them in turn what
`perdure.host.shim` does for one.

`perdure.host.process.kept` runs `host/keeper/__main__.py DIRECTORY`, in a session of its own. It
needs only the standard library and the shim, and starts in milliseconds. DIRECTORY belongs to the
keeper, is removed when it ends, and contains:

    launch      read: grace, output cap, idle limit, memory limit, mark, cwd and argv, separated by
                NUL; locked while this process lives
    shim.json   the identity of this process, in the same form as a shim's
    about.json  written by the owner: whose agent this is, for other supervisors

The agent reads one prompt after the other from its input, a pipe. It exits by itself when the pipe
is closed and its turn is over. Its output arrives through pipes and is written to the directory of
the attempt whose turn it is. There the keeper leaves the files that a shim would: `shim.json`,
`agent.json`, `stdout`, `stderr` and finally `exit.json`. The owner sends these messages:

    turn DIRECTORY DEADLINE
                with the attempt's locked `launch` and the workdir's lock: the next prompt is in
                the `stdin` of DIRECTORY. The answer is `taken`, or `gone` if the agent has ended
                or has written something between turns
    rest        the turn is over. Processes left behind are ended, as at the end of any attempt.
                Then comes `exit.json` with the cause `turn`, and the answer `resting BYTES` with
                the memory in use; or the answer `ending REASON`, and the same as for `end`
    end         the agent's input is closed: it exits by itself, and the attempt ends as usual

Guarantees: between two turns nothing of an attempt runs except the agent itself, and neither the
workdir's lock nor the attempt's is held. An agent that writes between turns, exceeds its memory
limit or is idle for too long is ended. If the owner is gone, an idle agent is ended at once, and a
busy one after its turn. SIGTERM ends everything, as it does for a shim. Here too, if exit.json
exists, the attempt is over and nothing of it runs.
"""
