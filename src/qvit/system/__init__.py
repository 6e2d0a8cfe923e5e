"""What a run meets of its machine: other processes, signals, disks that fill, a terminal, a folder to keep things in.

Nothing here knows what a model is.

    processes.py       this process among those of an Accelerate launch, means and agreements over all of them
    interruption.py    SIGTERM and Ctrl-C become a checkpoint and an exit code
    storage.py         files are written under another name, then renamed; a full disk is an error with advice
    runs.py            the run directory: which file is where, checkpoints in safetensors and JSON
    progress.py        one line, rewritten in place on a terminal
"""
