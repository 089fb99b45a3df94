"""The keeper: the parent process of an agent that is kept for several attempts, one after the
other. For each of these attempts it replaces the shim (`perdure.host.shim`).

`perdure.host.process.kept` runs `host/keeper/__main__.py DIRECTORY`, in a session of its own. This
program needs only the standard library and the shim, and starts in milliseconds. DIRECTORY belongs
to the keeper, which removes it at its end. It contains:

    launch      read: grace, output cap, idle limit, memory limit, mark, cwd and argv, separated by
                NUL; locked while this process lives
    shim.json   the identity of this process, in the same form as a shim's
    about.json  written by the owner, for other supervisors: the session, workdir and host of the
                agent

The agent reads one prompt after the other from its input, a pipe. It exits by itself when the pipe
is closed and its turn is over. The keeper reads the agent's output from pipes and writes it to the
directory of the attempt whose turn is running. In this directory, it writes the same files as a
shim: `shim.json`, `agent.json`, `stdout`, `stderr` and finally `exit.json`. The owner sends these
messages:

    turn DIRECTORY DEADLINE
                the next prompt is in the file `stdin` of DIRECTORY. The message carries two
                descriptors: the attempt's locked `launch` and the workdir's lock. The answer is
                `taken`, or `gone` if the agent has ended or has written something between turns
    rest        the turn is over. The keeper ends processes that the turn left behind, as at the end
                of any attempt. If the agent can be kept, it then writes `exit.json` with the cause
                `turn`, and answers `resting BYTES` with the memory in use. Otherwise it answers
                `ending REASON` and does the same as for `end`
    end         the keeper closes the agent's input. The agent then exits by itself, and the attempt
                ends as usual

Guarantees: between two turns only the agent itself is running, and neither the workdir's lock nor
the attempt's lock is held. The keeper ends an agent that writes between turns, exceeds its memory
limit or is idle for too long. If the owner is gone, it ends an idle agent at once, and a busy one
after its turn. SIGTERM ends everything, as it does for a shim. If exit.json exists, the attempt has
ended and none of its processes runs, except the kept agent.
"""
