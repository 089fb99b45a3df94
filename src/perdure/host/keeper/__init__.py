"""The parent of one agent that is kept for several attempts: what `perdure.host.shim` is for one
attempt, for all of them in turn.

`perdure.host.process.kept` runs `host/keeper/__main__.py DIRECTORY`, in a session of its own. It
needs the standard library and the shim, and starts in milliseconds. DIRECTORY is its own and goes
when it ends; in it lie

    launch      read: grace, output cap, idle limit, memory limit, mark, cwd and argv, separated by
    NUL; locked while this lives shim.json   who this process is, as a shim writes it about.json
    its owner's: whose agent this is, for other supervisors

The agent reads one prompt after the other from its input, a pipe, and ends by itself when that is
closed and its turn is over. What it writes comes in by pipes and goes into the directory of the
attempt whose turn it is. There this process leaves what a shim would: `shim.json`, `agent.json`,
`stdout`, `stderr` and at last `exit.json`. The owner says, a message each:

    turn DIRECTORY DEADLINE   with the attempt's locked `launch` and the workdir's lock: the prompt
    in its `stdin` is the next one.
                              Answered by `taken`, or by `gone` if the agent has ended or has spoken
                              out of turn
    rest                      the turn is over. What it left behind is ended, as at the end of any
    attempt. Then `exit.json` with the
                              cause `turn`, and `resting BYTES` of memory; or `ending REASON`, and
                              as below
    end                       the agent's input is closed: it ends by itself, and the attempt has an
    ordinary exit

What it guarantees: between two turns nothing of an attempt lives but the agent itself, and neither
the workdir's lock nor the attempt's is held. An agent that speaks out of turn, outgrows its memory
limit or is idle for too long is ended. So is one whose owner is gone: at once if it is idle, else
after its turn, which goes on. SIGTERM ends all, as it does for a shim. "exit.json exists" implies,
here too, that the attempt is over and nothing of it runs.
"""
